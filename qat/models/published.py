"""What is said when published weights cannot be used: the same sentences whoever published them."""

from __future__ import annotations


def unreachable(what: str, error: Exception, way_out: str) -> str:
    """The sentence for weights that cannot be fetched.

    Args:
        what: The weights.
        error: Why.
        way_out: What to do on a machine that cannot reach them.
    """
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"cannot fetch {what} ({type(error).__name__}: {reason}). Where this machine has no way there: {way_out}"


def other_classes(what: str, theirs: int, ours: int) -> str:
    """The sentence for weights with another number of classes."""
    if theirs == 0:
        return (
            f"weights {what} were published without a head, and the model is to have {ours} classes; use "
            "init_reset_head=true (reset_head=True in Python), which trains a head anew"
        )
    return (
        f"weights {what} have {theirs} classes, the model is to have {ours}; use init_reset_head=true (reset_head=True "
        f"in Python), which takes everything but the head and trains that anew, or num_classes={theirs}"
    )
