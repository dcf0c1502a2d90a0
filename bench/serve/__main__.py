"""The door: ``python -m bench.serve``."""

if __name__ == "__main__":  # client processes read this module too, and need none of that
    import sys

    from bench.serve.command import main

    sys.exit(main())
