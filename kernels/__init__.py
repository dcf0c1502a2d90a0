"""Operations of the two models, one a file. Import submodules: this file stays empty of imports."""
