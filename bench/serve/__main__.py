"""The door: ``python -m bench.serve``."""

if __name__ == "__main__":  # client processes read this module too, and need none of that
    import sys
    from importlib.util import find_spec

    if find_spec("h11") is None:
        print("error: bench.serve needs h11: pip install steer-engine[serve]", file=sys.stderr)
        sys.exit(2)

    from bench.serve.command import main

    sys.exit(main())
