"""Tasks of Meta-World."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from lightning_meta.datamodules.arguments import check_number
from lightning_meta.errors import ConfigurationError
from lightning_meta.rl.data_module import RLDataModule
from lightning_meta.rl.environment import Box, PolicySpaces, TaskSuite
from lightning_meta.rl.gymnasium_source import shown
from lightning_meta.rl.imports import required
from lightning_meta.rl.sawyer_source import SIZES, Goal, Observations, SawyerSource
from lightning_meta.rl.stepped import Stage, TaskList

Benchmark: TypeAlias = Literal["ML1", "ML10", "ML45"]
LONGEST = 500


class MetaWorldDataModule(RLDataModule):
    """Meta-World's robot arm: `"ML1"` (new goals in one environment), `"ML10"` and `"ML45"` (new environments).

    A task is an environment with one place of its object and one of the goal, which observations do not show. Training
    has the 50 goals of each training environment, test those that Meta-World has for it: in ML1 50 others, in ML10 and
    ML45 50 of each of five other environments. Meta-World has nothing to validate on; here that is 50 more goals of
    each training environment. An episode is a success if it reaches the goal at any step, counted for each goal: see
    `docs/meta_world.md` about what Meta-World's own evaluation counts.

    Its start is the same in every episode of a task: only the policy is random. Steps and resets are cheaper than
    Meta-World's, and their numbers the same.

    Paper: Yu et al. 2019, arXiv:1910.10897; version 3: McLean et al. 2025, arXiv:2505.11289.

    Args:
        benchmark: `"ML1"`, `"ML10"` or `"ML45"`.
        environment: That of ML1, such as `"reach-v3"`.
        horizon: The most steps of an episode, at most the 500 of Meta-World.
        observations: `"all"` 39 numbers, or the 18 of the `"current"` step, without those of the step before and the
            zeros.
        scaled: Whether positions are in units of 0.1 m from about where things begin, instead of in metres: a network
            hardly sees differences of a few hundredths. The same for all tasks and all of training.
        reward_function_version: `"v2"`, from 0 to 10 a step, or `"v1"`. Returns of different versions are no more
            comparable than those of different environments.
        goal_seed: Which goals; those of test are of the next seed in ML1.
        episodes: Episodes of a task before each inner step.
        query_episodes: Episodes of a task with the adapted policy; `episodes` if `None`.
        val_episodes: The first of these in validation; `episodes` if `None`, and so on below.
        test_episodes: The first of these in test.
        val_query_episodes: The second of these in validation; `query_episodes` if `None`.
        test_query_episodes: The second of these in test.
        meta_batch_size: Tasks in an outer step, over all devices together.
        steps_per_epoch: Batches of tasks in an epoch.
        val_tasks: Number of validation tasks, the environments taking turns.
        test_tasks: Number of test tasks; all if `None`.
        eval_batch_size: Tasks in a batch of evaluation, on each device.
        seed: Which streams of tasks.
        num_workers: Worker processes that step environments, for each device; best as many as there are cores.

    Raises:
        ArgumentTypeError: At construction, a value is of another kind.
        ConfigurationError: At construction, a value has no meaning, or a number is out of its range. In `setup`,
            devices do not divide the meta-batch, or Meta-World is not installed.
    """

    monitor = "val/query_success"

    def __init__(
        self,
        benchmark: Benchmark = "ML1",
        environment: str | None = None,
        horizon: int = LONGEST,
        observations: Observations = "all",
        scaled: bool = True,
        reward_function_version: Literal["v1", "v2"] = "v2",
        goal_seed: int = 42,
        episodes: int = 10,
        query_episodes: int | None = None,
        val_episodes: int | None = None,
        test_episodes: int | None = None,
        val_query_episodes: int | None = None,
        test_query_episodes: int | None = None,
        meta_batch_size: int = 20,
        steps_per_epoch: int = 100,
        val_tasks: int = 50,
        test_tasks: int | None = None,
        eval_batch_size: int = 25,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            episodes=episodes,
            query_episodes=query_episodes,
            val_episodes=val_episodes,
            test_episodes=test_episodes,
            val_query_episodes=val_query_episodes,
            test_query_episodes=test_query_episodes,
            meta_batch_size=meta_batch_size,
            steps_per_epoch=steps_per_epoch,
            val_tasks=val_tasks,
            test_tasks=(50 if benchmark == "ML1" else 250) if test_tasks is None else test_tasks,
            eval_batch_size=eval_batch_size,
            seed=seed,
        )
        for name, value, allowed in (
            ("benchmark", benchmark, ("ML1", "ML10", "ML45")),
            ("observations", observations, tuple(SIZES)),
            ("reward_function_version", reward_function_version, ("v1", "v2")),
        ):
            if value not in allowed:
                raise ConfigurationError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")
        if (environment is None) == (benchmark == "ML1"):
            raise ConfigurationError(
                'ML1 needs the environment, such as environment="reach-v3".'
                if environment is None
                else f"{benchmark} has environments of its own: leave out environment={environment!r}."
            )
        check_number("horizon", horizon, 1, LONGEST + 1)
        check_number("goal_seed", goal_seed, 0, 2**32 - 2)
        check_number("num_workers", num_workers, 0, 1024)
        self.benchmark, self.environment, self.goal_seed = benchmark, environment, goal_seed
        self.observations, self.scaled, self.reward_function_version = observations, scaled, reward_function_version
        self.horizon, self.environment_workers = horizon, num_workers
        self._stage: Stage | None = None
        self._goals: dict[str, list[list[Goal]]] = {}

    def configure_suite(self, split: str) -> TaskSuite:
        """The goals of a split, with the environments of all splits."""
        if self._stage is None:
            source = self._source()
            spaces = PolicySpaces(source.shape, Box((-1.0,) * 4, (1.0,) * 4))
            self._stage = Stage("Meta-World", source, spaces, self.environment_workers)
        return TaskList(self._stage, split, self.goals(split), self.horizon, self.seed)

    def environment_of(self, number: int, split: str = "test", render_mode: str | None = None) -> Any:
        """Meta-World's own environment with the task of this number, to adapt to, or to record: see `record_video`.

        Args:
            number: Of the task.
            split: `"train"`, `"val"` or `"test"`.
            render_mode: `"rgb_array"` to record it.
        """
        goal = self.suites[split].task(number)  # type: ignore[attr-defined]
        environment_class = required("metaworld.env_dict").ALL_V3_ENVIRONMENTS[goal.environment]
        environment = environment_class(
            reward_function_version=self.reward_function_version,
            render_mode=render_mode,
            camera_name="corner2" if render_mode else None,
        )
        environment.set_task(goal.task)
        source = self._source()
        return shown(environment, source.observation, source.shape, self.horizon)

    def goals(self, split: str) -> list[list[Goal]]:
        """The goals of a split, 50 of each of its environments."""
        if not self._goals:
            published, more = self._made(self.goal_seed), self._made(self.goal_seed + 2)
            self._goals = {
                "train": _by_environment(published.train_tasks),
                "val": _by_environment(more.train_tasks),
                "test": _by_environment(published.test_tasks),
            }
        return self._goals[split]

    def _source(self) -> SawyerSource:
        return SawyerSource(self.observations, self.scaled, self.reward_function_version)

    def _made(self, seed: int) -> Any:
        # Its classes, since gymnasium.make_vec("Meta-World/ML1-train") makes environments of the test split.
        classes = required("metaworld")
        if self.benchmark != "ML1":
            return getattr(classes, self.benchmark)(seed=seed)
        known = required("metaworld.env_dict").ALL_V3_ENVIRONMENTS
        if self.environment not in known:
            raise ConfigurationError(
                f"Meta-World has no environment {self.environment!r}. There are {', '.join(sorted(known))}."
            )
        return classes.ML1(self.environment, seed=seed)


def _by_environment(tasks: Sequence[Any]) -> list[list[Goal]]:
    groups: dict[str, list[Goal]] = {}
    for task in tasks:
        group = groups.setdefault(task.env_name, [])
        group.append(Goal(task.env_name, len(group), task))
    return list(groups.values())
