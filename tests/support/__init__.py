"""Tools of this project's own development; not part of the wheel."""
