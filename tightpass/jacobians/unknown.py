"""What formulas say of a module that they do not know."""


class NoClosedFormError(Exception):
    """A module that the formulas do not know; automatic differentiation takes it."""
