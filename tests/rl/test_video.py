"""Videos of a policy."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lightning_meta.errors import ConfigurationError
from lightning_meta.rl.gymnasium_tasks import GymnasiumDataModule
from lightning_meta.rl.video import record_video
from tests.rl.environments import Point


class Drawn(Point):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, goal=0.0, render_mode=None, broken=False):
        super().__init__(goal)
        self.render_mode, self.broken = render_mode, broken

    def render(self):
        if self.broken:
            raise RuntimeError("could not open a display")
        picture = np.zeros((32, 32, 3), np.uint8)
        picture[self.steps] = 255
        return picture


def drawn(tasks=(0.25,), **options):
    data = GymnasiumDataModule(Drawn, list(tasks), set_task="set_goal", options=options, horizon=5)
    data.setup()
    return data


def stay(observation):
    assert observation.dtype == np.float32
    return np.zeros(1, np.float32)


def test_a_video_of_each_episode(tmp_path):
    pytest.importorskip("moviepy", reason="moviepy, of the extra rl, is not installed")
    import imageio.v3 as imageio

    environment = drawn().environment_of(0, render_mode="rgb_array")
    assert environment.unwrapped.goal == 0.25
    files = record_video(stay, environment, tmp_path / "videos", "still", episodes=2)
    assert files == [tmp_path / "videos" / f"still-episode-{i}.mp4" for i in range(2)]
    for seed, file in enumerate(files):
        alone = Point()
        alone.reset(seed=seed)
        frames = imageio.imread(file, plugin="FFMPEG")
        assert len(frames) == min(alone.last, 5) + 1, "A picture of the start and of each step."
        assert np.argmax(frames[2].mean((1, 2))) == 2, "The line is where the step's is."


def test_what_cannot_be_recorded(tmp_path):
    with pytest.raises(ConfigurationError, match=r'render_mode="rgb_array" can be recorded, and that of .* is None'):
        record_video(stay, drawn().environment_of(0), tmp_path)
    pytest.importorskip("moviepy", reason="moviepy, of the extra rl, is not installed")
    with pytest.raises(ConfigurationError, match=r"cannot be drawn here \(RuntimeError: could not open a display\)"):
        record_video(stay, drawn(broken=True).environment_of(0, render_mode="rgb_array"), tmp_path)
    assert not list(tmp_path.iterdir())


SCRIPT = """
import sys
from lightning_meta.errors import ConfigurationError
from lightning_meta.rl.half_cheetah import HalfCheetahDataModule
from lightning_meta.rl.video import record_video
data = HalfCheetahDataModule(horizon=5)
data.setup()
environment = data.environment_of(0, render_mode="rgb_array")
try:
    print(record_video(lambda _: environment.action_space.sample(), environment, sys.argv[1]))
except ConfigurationError as error:
    print(error)
"""


def test_mujoco_is_recorded_or_says_what_it_needs(tmp_path):
    pytest.importorskip("mujoco", reason="mujoco, of the extra rl, is not installed")
    pytest.importorskip("moviepy", reason="moviepy, of the extra rl, is not installed")
    environment = {**os.environ, "MUJOCO_GL": "egl", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, env=environment, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert (tmp_path / "policy-episode-0.mp4").is_file() or "cannot be drawn here" in run.stdout, run.stderr[-2000:]
