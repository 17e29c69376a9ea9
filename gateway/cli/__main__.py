"""`python -m gateway.cli`: the same as `scanward`."""

from gateway.cli import main

if __name__ == "__main__":  # the detection worker is spawned, and imports this module again
    main(prog_name="scanward")
