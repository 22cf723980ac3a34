"""Weights of the losses after each inner step, for MAML++'s multi-step loss."""


def multi_step_weights(steps: int, progress: float) -> list[float]:
    r"""How much the query loss after each inner step counts.

    At first all count the same, :math:`1/S`. The weights of all but the last fall linearly with the progress of
    training, to no less than :math:`0.03/S` and to 0 at its end, and the last has what is left of 1.
    Paper: Antoniou, Edwards, Storkey 2019, arXiv:1810.09502, section 4, equation 4.

    Args:
        steps: Inner steps `S`, at least 1.
        progress: 0 at first, 1 or more when only the last step's loss counts.

    Returns:
        `S` weights, of sum 1.

    Example:
        >>> multi_step_weights(4, 0.0)
        [0.25, 0.25, 0.25, 0.25]
        >>> multi_step_weights(4, 0.5)
        [0.125, 0.125, 0.125, 0.625]
        >>> multi_step_weights(4, 1.0)
        [0.0, 0.0, 0.0, 1.0]
    """
    early = 0.0 if progress >= 1 else max(1 - progress, 0.03) / steps
    return [early] * (steps - 1) + [1 - early * (steps - 1)]
