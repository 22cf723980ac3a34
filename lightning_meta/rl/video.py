"""Videos of what a policy does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lightning_meta.datamodules.arguments import check_number
from lightning_meta.errors import ConfigurationError, one_line
from lightning_meta.rl.imports import required


def record_video(
    policy: Callable[[Any], Any],
    environment: Any,
    folder: str | Path,
    name: str = "policy",
    episodes: int = 1,
    seed: int = 0,
) -> list[Path]:
    """Record a policy in an environment by `gymnasium.wrappers.RecordVideo`, one file for each episode.

    MuJoCo draws without a display where `MUJOCO_GL=egl` or `MUJOCO_GL=osmesa` was set before Python started, and the
    library of that name is there.

    Args:
        policy: Maps an observation to an action, such as what `adapt_to` returns.
        environment: Has the interface of `gymnasium.Env`, was made with `render_mode="rgb_array"`, and ends its
            episodes: `environment_of(number, render_mode="rgb_array")` of a data module is one. It is closed.
        folder: Where the files go; made if it is missing.
        name: Their names begin with it.
        episodes: How many.
        seed: Of the first episode; the next one has the next seed.

    Returns:
        The files, `<folder>/<name>-episode-<number>.mp4`.

    Raises:
        ConfigurationError: The environment was not made to be recorded, cannot be drawn here, or a library is missing.
    """
    check_number("episodes", episodes)
    check_number("seed", seed, 0, 2**31 - episodes)
    gymnasium = required("gymnasium")
    if getattr(environment, "render_mode", None) != "rgb_array":
        raise ConfigurationError(
            f'Only environments with render_mode="rgb_array" can be recorded, and that of {environment} is '
            f"{getattr(environment, 'render_mode', None)!r}."
        )
    required("moviepy")  # which writes the files
    try:
        _check_drawing(environment)
        wrapper = gymnasium.wrappers.RecordVideo
        recorded = wrapper(environment, str(folder), lambda _: True, name_prefix=name, disable_logger=True)
        for episode in range(episodes):
            observation, _ = recorded.reset(seed=seed + episode)
            over = False
            while not over:
                action = np.asarray(policy(observation))
                observation, _, terminated, truncated, _ = recorded.step(action if action.ndim else int(action))
                over = bool(terminated or truncated)
        recorded.close()
    finally:
        environment.close()
    return [Path(folder) / f"{name}-episode-{episode}.mp4" for episode in range(episodes)]


def _check_drawing(environment: Any) -> None:
    try:
        environment.reset(seed=0)
        picture = environment.render()
    except Exception as error:
        raise ConfigurationError(
            f"{environment} cannot be drawn here ({one_line(error)}). Without a display, MuJoCo draws with the "
            "environment variable MUJOCO_GL=egl (with the libraries of a GPU's driver) or MUJOCO_GL=osmesa (with "
            "libOSMesa), set before Python starts."
        ) from error
    if not isinstance(picture, np.ndarray) or picture.ndim != 3:
        raise ConfigurationError(f"{environment}.render() must return a picture (height, width, 3), got {picture!r}.")
