"""Whether a value is of the type that a notebook's default, or a field of a config, is of."""

import ast


class Misfit(Exception):
    """A value that is not what it must be. Its text says what that is; hint: how to mend it."""

    def __init__(self, wanted: str, hint: str = "", value: object = None):
        super().__init__(wanted)
        self.hint, self.value = hint, value


def fit(value: object, default: object) -> object:
    """`value` as the type of `default`. Raises Misfit.

    An int serves as a float, one value for a list as a list of it; None as a default takes anything.
    """
    if default is None:
        return value
    if isinstance(default, list) and not isinstance(value, list):
        value = [value]
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise Misfit(type(default).__name__)
    if isinstance(default, list) and default:
        return [_fit_element(element, default) for element in value]
    return value


def _fit_element(element: object, defaults: list) -> object:
    for default in defaults:
        try:
            return fit(element, default)
        except Misfit:
            continue
    raise Misfit("a list of " + " or ".join(dict.fromkeys(type(default).__name__ for default in defaults)))


def is_of(value: object, annotation: str) -> bool:
    """Whether a value of YAML may be a field that is annotated so; an int serves as a float, a list as a tuple.

    True where the annotation is of no kind that is known here.
    """
    return _is(value, ast.parse(annotation, mode="eval").body)


def _is(value: object, told: ast.expr) -> bool:
    if isinstance(told, ast.BinOp):
        return _is(value, told.left) or _is(value, told.right)
    if isinstance(told, ast.Constant):
        return value is None if told.value is None else True
    if isinstance(told, ast.Subscript):
        if told.value.id not in ("tuple", "list", "Sequence"):
            return _is(value, told.value)
        parts = told.slice.elts if isinstance(told.slice, ast.Tuple) else [told.slice]
        endless = told.value.id != "tuple" or ast.unparse(parts[-1]) == "..."
        if not isinstance(value, list | tuple) or not (endless or len(value) == len(parts)):
            return False
        return all(_is(item, parts[0 if endless else place]) for place, item in enumerate(value))
    return type(value) in _PLAIN.get(told.id, (type(value),))


_PLAIN = {"str": (str,), "bool": (bool,), "int": (int,), "float": (float, int), "dict": (dict,), "list": (list, tuple)}
