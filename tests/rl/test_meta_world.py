"""Meta-World: its splits, its numbers, cheaper."""

import time

import numpy as np
import pytest
import torch

metaworld = pytest.importorskip("metaworld", reason="metaworld, of the extra rl, is not installed")

from metaworld.policies import SawyerPickPlaceV3Policy  # noqa: E402
from scipy.spatial.transform import Rotation as SciPysRotation  # noqa: E402

from lightning_meta.errors import ConfigurationError  # noqa: E402
from lightning_meta.rl.meta_world import MetaWorldDataModule  # noqa: E402
from lightning_meta.rl.sawyer import Rotation, SawyerKind  # noqa: E402
from tests.rl.environments import episodes  # noqa: E402

ENVIRONMENTS = metaworld.env_dict.ALL_V3_ENVIRONMENTS
# Objects that are pushed and grasped, that hang on joints, two of them, moved bodies of the model, own `_get_obs`.
SOME = ["reach-v3", "pick-place-v3", "door-lock-v3", "stick-pull-v3", "drawer-open-v3", "hammer-v3", "basketball-v3"]


def data(environment="reach-v3", **options):
    module = MetaWorldDataModule("ML1", environment, **{"horizon": 60, **options})
    module.setup()
    return module


@pytest.mark.parametrize("name", sorted(ENVIRONMENTS))
def test_numbers_are_meta_worlds(name, request):
    """Bit for bit: after the second of its resets on, in company of another environment, and after another task."""
    if name not in SOME and not request.config.getoption("--all-cases"):
        pytest.skip("other environments with --all-cases")
    arguments = metaworld.env_dict.ML1_ARGS_KWARGS[name]
    hidden = {"partially_observable": True}
    tasks = metaworld._make_tasks({name: ENVIRONMENTS[name]}, {name: arguments}, hidden, seed=1)
    kind = SawyerKind(ENVIRONMENTS[name], "v2")
    other, ours = kind.environment(), kind.environment()
    for number in (0, 1):
        real = ENVIRONMENTS[name]()
        real.set_task(tasks[number])
        real.reset()
        expected, _ = real.reset()
        for environment in (other, ours):
            environment.set_task(tasks[2])
            environment.reset()
            environment.step(np.ones(4, np.float32))
        ours.set_task(tasks[number])
        found, _ = ours.reset()
        assert np.array_equal(found, expected)
        for action in np.random.default_rng(number).uniform(-1.2, 1.2, (40, 4)).astype(np.float32):
            other.step(-action)
            theirs, mine = real.step(action), ours.step(action)
            assert np.array_equal(mine[0], theirs[0])
            assert mine[1:] == theirs[1:]


def test_what_is_gripped_is_noticed_as_by_meta_world():
    """By its scripted policy, since random actions hardly ever grip."""
    name = "pick-place-v3"
    arguments, seen = metaworld.env_dict.ML1_ARGS_KWARGS[name], {"partially_observable": False}
    (task, *_) = metaworld._make_tasks({name: ENVIRONMENTS[name]}, {name: arguments}, seen, seed=1)
    real, ours = ENVIRONMENTS[name](), SawyerKind(ENVIRONMENTS[name], "v2").environment()
    for environment in (real, ours):
        environment.set_task(task)
        environment.reset()
    observation, _ = real.reset()
    policy, gripped = SawyerPickPlaceV3Policy(), []
    for _ in range(70):
        action = policy.get_action(observation).astype(np.float32)
        observation, *others = real.step(action)
        found, *mine = ours.step(action)
        assert np.array_equal(found, observation)
        assert mine == others
        gripped.append(ours.touching_object(ours._get_id_main_object()))
        assert gripped[-1] == real.touching_object(real._get_id_main_object())
    assert not gripped[0]
    assert any(gripped)


def test_quaternions_are_scipys():
    rotations = SciPysRotation.random(300, random_state=0)
    turned = [np.diag(d) for d in ([1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1])]
    for matrix in [*rotations.as_matrix(), *turned]:
        assert np.array_equal(Rotation.from_matrix(matrix).as_quat(), SciPysRotation.from_matrix(matrix).as_quat())


def test_ml1_has_its_fifty_goals_and_fifty_others():
    module, published = data(), metaworld.ML1("reach-v3", seed=42)
    assert module.hparams["reward_function_version"] == "v2", "It is logged with every run."
    found = {
        split: [goal.task for group in module.goals(split) for goal in group] for split in ("train", "val", "test")
    }
    assert found["train"] == published.train_tasks
    assert found["test"] == published.test_tasks
    goals = {task.data for tasks in found.values() for task in tasks}
    assert len(goals) == 150, "No goal of one split is one of another."
    suite = module.suites["train"]
    assert {suite.task(i).number for i in range(50)} == set(range(50)), "50 numbers in a row are 50 goals."
    assert [module.suites["test"].task(i).number for i in range(50)] == list(range(50))


def test_ml10_has_its_environments():
    module = MetaWorldDataModule("ML10")
    module.setup()
    published = metaworld.ML10(seed=42)
    for split, classes in (("train", published.train_classes), ("val", published.train_classes)):
        assert {group[0].environment for group in module.goals(split)} == set(classes)
        assert all(len(group) == 50 for group in module.goals(split))
    assert [goal.task for group in module.goals("test") for goal in group] == published.test_tasks
    assert module.test_tasks == 250
    for start in (0, 10, 40):
        names = [module.suites["train"].task(start + i).environment for i in range(10)]
        assert len(set(names)) == 10, "Each ten tasks are of the ten environments."
    tested = [module.suites["test"].task(i) for i in range(250)]
    assert len(set(tested)) == 250
    assert len({goal.environment for goal in tested[:5]}) == 5
    found = episodes(module.suites["train"], range(10), count=1, steps=2)
    assert found[0].shape == (10, 1, 39)
    assert not found[0][..., -3:].any(), "The goal is hidden."


def test_scaled_positions_are_tenths_of_a_metre_from_where_things_begin():
    for name, objects in (("reach-v3", 1), ("stick-pull-v3", 2)):
        seen = [episodes(data(name, scaled=scaled).suites["train"], [3], 1, steps=3) for scaled in (False, True)]
        for i in (0, 1, 5, 9):
            raw, scaled = (found[i][0, 0] for found in seen)
            expected = raw.clone()
            for step in (0, 18):
                for first, height in ((0, 0.2), (4, 0.02), (11, 0.02))[: 1 + objects]:
                    place = slice(step + first, step + first + 3)
                    expected[place] = (raw[place] - torch.tensor([0.0, 0.6, height])) / 0.1
            torch.testing.assert_close(scaled, expected, rtol=1e-4, atol=1e-5)
            assert scaled.abs().max() < 5


def test_two_workers_are_no_worker():
    results = []
    for workers in (0, 2):
        module = data(num_workers=workers, observations="current")
        results.append(episodes(module.suites["train"], range(5), count=3, steps=10))
        module.teardown("fit")
    assert results[0][0].shape == (5, 3, 18)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_success_is_told():
    """A hand that is led straight to the goal succeeds at some step, one that stays does not."""
    module = data(scaled=False)
    environments = module.suites["test"].environments(range(4), 2)
    observations = environments.reset(np.zeros((4, 2), np.uint64))
    goals = torch.stack([torch.from_numpy(_goal(module.suites["test"].task(i))) for i in range(4)]).float()
    achieved = torch.zeros(4, 2, dtype=torch.bool)
    for _ in range(60):
        actions = torch.zeros(4, 2, 4)
        actions[:, 0, :3] = (10 * (goals - observations[:, 0, :3])).clamp(-1, 1)
        observations, _, ended, success = environments.step(actions)
        achieved |= success
        assert not ended.any()
    assert achieved[:, 0].all()
    assert not achieved[:, 1].any()


def test_an_environment_for_oneself_is_meta_worlds():
    module = data(observations="current")
    environment = module.environment_of(7)
    assert type(environment.unwrapped) is ENVIRONMENTS["reach-v3"]
    found, _ = environment.reset()
    expected = module.suites["test"].environments([7], 1).reset(np.zeros((1, 1), np.uint64))
    assert np.array_equal(found, expected[0, 0].numpy())
    ends = [environment.step(np.zeros(4, np.float32))[3] for _ in range(60)]
    assert ends == [False] * 59 + [True]


def _goal(goal):
    import pickle

    return pickle.loads(goal.task.data)["rand_vec"][3:]


def test_steps_and_resets_are_cheap():
    """At least 1.4 × the steps of Meta-World's synchronous vector environment, a reset in at most a millisecond."""
    environments = data().suites["train"].environments(range(10), 1)
    theirs = metaworld.make_ml_envs("reach-v3", seed=42, meta_batch_size=10)
    actions = np.random.default_rng(0).uniform(-1, 1, (50, 10, 4)).astype(np.float32)
    seeds = np.zeros((10, 1), np.uint64)

    def steps_of_theirs():
        for action in actions:
            theirs.step(action)

    def our_steps():
        for action in actions:
            environments.step(torch.from_numpy(action[:, None]))

    theirs.reset()
    assert _seconds(lambda: environments.reset(seeds)) < 10e-3
    ours, real = [], []
    for _ in range(5):  # in turn, since other processes may be at work
        environments.reset(seeds)
        ours.append(_seconds(our_steps))
        real.append(_seconds(steps_of_theirs))
    theirs.close()
    print(f"{min(real) / min(ours):.2f} × the steps")
    assert min(real) > 1.4 * min(ours)


def _seconds(function):
    start = time.process_time()
    function()
    return time.process_time() - start


def test_what_cannot_be():
    with pytest.raises(ConfigurationError, match='ML1 needs the environment, such as environment="reach-v3"'):
        MetaWorldDataModule()
    with pytest.raises(ConfigurationError, match="ML10 has environments of its own"):
        MetaWorldDataModule("ML10", "reach-v3")
    with pytest.raises(ConfigurationError, match="horizon must be at least 1 and below 501"):
        data(horizon=501)
    with pytest.raises(ConfigurationError, match="no environment 'reach-v2'"):
        data("reach-v2")
    with pytest.raises(ConfigurationError, match="reward_function_version must be one of v1, v2"):
        data(reward_function_version="v3")
