"""`python -m mmret_tf` is the `mmret` command."""

from mmret_tf.cli import main

if __name__ == "__main__":
    main()
