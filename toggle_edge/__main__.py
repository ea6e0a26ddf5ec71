"""`python -m toggle_edge`."""

from toggle_edge.cli import main

if __name__ == "__main__":
    main()
