"""scikit-learn manners without scikit-learn: parameters, repr, tags, the fitted state."""
import inspect
import sys

from gnncy.errors import NotFittedError


class Estimator:
    """Parameters are the arguments of ``__init__``, stored untouched; results end in ``_`` and appear on ``fit``."""

    @classmethod
    def _parameter_names(cls) -> list[str]:
        return sorted(p for p in inspect.signature(cls.__init__).parameters if p != "self")

    def get_params(self, deep: bool = True) -> dict:
        """Parameters by name (``deep`` is accepted for scikit-learn; no parameter holds an estimator)."""
        return {name: getattr(self, name) for name in self._parameter_names()}

    def set_params(self, **params):
        """Set parameters by name; returns the estimator."""
        known = self._parameter_names()
        for name, value in params.items():
            if name not in known:
                raise ValueError(f"Invalid parameter {name!r} for estimator {self}. "
                                 f"Valid parameters are: {known}.")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = {name: p.default for name, p in inspect.signature(type(self).__init__).parameters.items()}
        changed = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._parameter_names()
                            if repr(getattr(self, name)) != repr(defaults[name]))
        return f"{type(self).__name__}({changed})"

    def __sklearn_tags__(self):
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags
        return Tags(estimator_type="transformer", target_tags=TargetTags(required=False),
                    transformer_tags=TransformerTags(preserves_dtype=["float32"]),
                    input_tags=InputTags(pairwise=True, sparse=True, positive_only=True))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "embedding_")

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise _not_fitted()(f"this {type(self).__name__} is not fitted yet; call fit with an adjacency first")


def _not_fitted() -> type[NotFittedError]:
    """Our error, where scikit-learn is loaded also its own."""
    theirs = sys.modules.get("sklearn.exceptions")
    return NotFittedError if theirs is None else type("NotFittedError", (NotFittedError, theirs.NotFittedError), {})
