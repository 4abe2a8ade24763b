"""`python -m optserve`: the command line."""

from optserve.cli import main

if __name__ == "__main__":
    main()
