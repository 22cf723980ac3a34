"""Meta-World's environments with cheaper steps and resets, and the same numbers.

A step of Meta-World takes six times what its physics takes, and more where things are touched. Four things are cheaper
here and change no number: the rotation of an object as a quaternion is computed directly, positions are looked up by
their place instead of their name, what the gripper touches is found in all contacts at once, and a reset puts the state
back that the task's first reset led to, instead of moving the arm there in a hundred steps. Environments of one kind
share one simulation: an environment is the state of its physics, a few hundred numbers, which is put into the
simulation for a step. Tasks move bodies and sites of its model, and nothing else.
"""

import math
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_meta.rl.imports import required


class _View(NamedTuple):
    """A part of one of the simulation's arrays, which an environment holds as an attribute and sees moving."""

    array: str
    first: int
    shape: tuple[int, ...]


class _Start(NamedTuple):
    """What an environment is after its reset: a function of the task."""

    observation: NDArray[np.float64]
    physics: NDArray[np.float64]
    body_pos: NDArray[np.float64]
    site_pos: NDArray[np.float64]
    attributes: dict[str, Any]


class SawyerKind:
    """Environments of one of Meta-World's classes, which share a model.

    Args:
        environment_class: Of Meta-World, such as `SawyerReachEnvV3`.
        reward_function_version: `"v1"` or `"v2"`.
    """

    def __init__(self, environment_class: Any, reward_function_version: str) -> None:
        self.mujoco = required("mujoco")
        self._class = _cheap(environment_class)
        self.prototype = environment_class(reward_function_version=reward_function_version)
        self.model = self.prototype.model
        self.data = self.mujoco.MjData(self.model)
        self.bodies = [self.model.body(name).id for name in ("hand", "rightclaw", "leftclaw")]
        self.sites = [self.model.site(name).id for name in ("rightEndEffector", "leftEndEffector")]
        self.pads = [self.model.geom(name).id for name in ("leftpad_geom", "rightpad_geom")]
        self.physics = self.mujoco.mjtState.mjSTATE_INTEGRATION
        self._places = self.model.body_pos.copy(), self.model.site_pos.copy()
        self._attributes = _attributes(self.prototype)
        self._starts: dict[bytes, _Start] = {}

    def environment(self) -> Any:
        """A new environment, which needs `set_task`."""
        environment = object.__new__(self._class)
        environment.kind = self
        environment.model, environment.data = self.model, self.data
        return environment

    def start(self, task: Any) -> _Start:
        """What a reset with this task leads to: that of Meta-World, when nothing was there before."""
        if task.data not in self._starts:
            real = self.prototype
            self.model.body_pos[:], self.model.site_pos[:] = self._places
            vars(real).update(_restored(self._attributes, real.data))
            real.set_task(task)
            real.reset()
            # Where a task moves bodies, the first reset still brings the arm to its place around the old ones.
            observation, _ = real.reset()
            physics = np.empty(self.mujoco.mj_stateSize(self.model, self.physics))
            self.mujoco.mj_getState(self.model, real.data, physics, self.physics)
            places = self.model.body_pos.copy(), self.model.site_pos.copy()
            self._starts[task.data] = _Start(observation.copy(), physics, *places, _attributes(real))
        return self._starts[task.data]


class _Cheap:
    """What is changed of an environment of Meta-World."""

    kind: SawyerKind
    data: Any
    _obs_obj_max_len: int
    _get_pos_objects: Any
    _get_quat_objects: Any
    _task_start: _Start
    _physics: NDArray[np.float64]

    def set_task(self, task: Any) -> None:
        self._task_start = self.kind.start(task)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.float64], dict[str, Any]]:
        start = self._task_start
        vars(self).update(_restored(start.attributes, self.data))
        self._physics = start.physics.copy()
        return start.observation.copy(), {}

    def step(self, action: Any) -> Any:
        kind, start = self.kind, self._task_start
        kind.model.body_pos[:], kind.model.site_pos[:] = start.body_pos, start.site_pos
        kind.mujoco.mj_setState(kind.model, kind.data, self._physics, kind.physics)
        stepped = super().step(action)  # type: ignore[misc]
        kind.mujoco.mj_getState(kind.model, kind.data, self._physics, kind.physics)
        return stepped

    def _get_curr_obs_combined_no_goal(self) -> NDArray[np.float64]:
        places = self.data.xpos
        hand, right, left = self.kind.bodies
        apart = places[right] - places[left]
        seen = np.zeros(4 + self._obs_obj_max_len)
        seen[:3] = places[hand]
        seen[3] = min(max(math.sqrt(apart.dot(apart)) / 0.1, 0.0), 1.0)
        positions, rotations = self._get_pos_objects(), self._get_quat_objects()
        for i in range(len(positions) // 3):
            seen[4 + 7 * i : 7 + 7 * i] = positions[3 * i : 3 * i + 3]
            seen[7 + 7 * i : 11 + 7 * i] = rotations[4 * i : 4 * i + 4]
        return seen

    def touching_object(self, object_geom_id: int) -> bool:
        contacts = self.data.contact
        pairs = contacts.geom[:, 0], contacts.geom[:, 1]
        of_object = (pairs[0] == object_geom_id) | (pairs[1] == object_geom_id)
        if not of_object.any():
            return False
        return all(
            sum(self.data.efc_force[contacts.efc_address[of_object & ((pairs[0] == pad) | (pairs[1] == pad))]]) > 0
            for pad in self.kind.pads
        )

    @property
    def tcp_center(self) -> Any:
        right, left = self.kind.sites
        places = self.data.site_xpos
        return (places[right] + places[left]) / 2.0

    def close(self) -> None:
        """Nothing of its own is open."""


class Rotation:
    """The part of `scipy.spatial.transform.Rotation` that Meta-World uses, for one rotation."""

    def __init__(self, matrix: NDArray[np.float64]) -> None:
        self.matrix = matrix

    @classmethod
    def from_matrix(cls, matrix: NDArray[np.float64]) -> "Rotation":
        """A rotation from its matrix `(3, 3)`."""
        return cls(matrix)

    def as_quat(self) -> NDArray[np.float64]:
        """The quaternion `(x, y, z, w)` whose largest entry is positive, to the last bit that of SciPy.

        Example:
            >>> Rotation.from_matrix(np.diag([1.0, -1.0, -1.0])).as_quat()
            array([1., 0., 0., 0.])
        """
        m = self.matrix.reshape(-1).tolist()
        trace = m[0] + m[4] + m[8]
        entries = (m[0], m[4], m[8], trace)
        largest = entries.index(max(entries))
        if largest == 3:
            q = [m[7] - m[5], m[2] - m[6], m[3] - m[1], 1 + trace]
        elif largest == 0:
            q = [1 - trace + 2 * m[0], m[3] + m[1], m[6] + m[2], m[7] - m[5]]
        elif largest == 1:
            q = [m[1] + m[3], 1 - trace + 2 * m[4], m[7] + m[5], m[2] - m[6]]
        else:
            q = [m[2] + m[6], m[5] + m[7], 1 - trace + 2 * m[8], m[3] - m[1]]
        norm = math.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3])
        return np.array([entry / norm for entry in q])


@cache
def _cheap(environment_class: Any) -> Any:
    """A subclass of a class of Meta-World with what is cheaper, and `Rotation` instead of SciPy's."""
    changes: dict[str, Any] = {}
    function = environment_class._get_quat_objects
    if "Rotation" in function.__code__.co_names:
        changes["_get_quat_objects"] = FunctionType(
            function.__code__, {**function.__globals__, "Rotation": Rotation}, function.__name__
        )
    return type(environment_class.__name__, (_Cheap, environment_class), changes)


def _attributes(environment: Any) -> dict[str, Any]:
    """What an environment holds beside its simulation, parts of the simulation's arrays as such."""
    arrays = {name: getattr(environment.data, name) for name in ("xpos", "site_xpos")}
    kept: dict[str, Any] = {}
    for name, value in vars(environment).items():
        if name in ("model", "data", "mujoco_renderer"):
            continue
        if isinstance(value, np.ndarray):
            of = next((array for array, whole in arrays.items() if np.shares_memory(value, whole)), None)
            if of is None:
                value = value.copy()
            else:
                distance = value.__array_interface__["data"][0] - arrays[of].__array_interface__["data"][0]
                value = _View(of, distance // value.itemsize, value.shape)
        kept[name] = value
    return kept


def _restored(attributes: dict[str, Any], data: Any) -> dict[str, Any]:
    """The same attributes for an environment with this simulation."""
    restored = {}
    for name, value in attributes.items():
        if isinstance(value, _View):
            size = int(np.prod(value.shape))
            value = getattr(data, value.array).reshape(-1)[value.first : value.first + size].reshape(value.shape)
        elif isinstance(value, np.ndarray):
            value = value.copy()
        restored[name] = value
    return restored
