"""Networks on vectors that start as the identity, and the baseline that they start as."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_meta import (
    Adapter,
    EpisodicDataModule,
    Examples,
    MAMLModule,
    NearestCentroidModule,
    Projection,
    ProtoMAMLModule,
    ProtoNetModule,
    Task,
)
from lightning_meta.datasets import ClassDataset
from lightning_meta.errors import ConfigurationError, NetworkError
from tests.conftest import vector_tasks
from tests.modules.test_maml import trainer

NETWORKS = {"projection": Projection, "adapter": Adapter}


def nearest(tasks):
    """The class of each query example, by plain distances."""
    found = []
    for support, targets, query in zip(*tasks.support[:2], tasks.query.inputs, strict=True):
        centroids = torch.stack([support[targets == c].mean(0) for c in range(3)])
        found.append(torch.cdist(query.flatten(1), centroids.flatten(1)).argmin(1))
    return torch.stack(found)


def predictions(module, tasks):
    return torch.cat(list(module.task_map(module.algorithm.predict, module.problem(tasks)))).argmax(-1)


@pytest.mark.parametrize("scale", [1.0, 8.0])
@pytest.mark.parametrize("name", NETWORKS)
def test_an_untrained_network_is_the_nearest_centroid(name, scale):
    tasks = vector_tasks(tasks=20)
    network = NETWORKS[name](3, in_features=6, scale=scale).double()
    assert torch.equal(network.body(tasks.query.inputs[0]), scale * tasks.query.inputs[0])
    for module in (NearestCentroidModule(), ProtoNetModule(network), ProtoMAMLModule(network, inner_steps=0)):
        assert torch.equal(predictions(module, tasks), nearest(tasks))
    assert 0.2 < (nearest(tasks) == tasks.query.targets).double().mean() < 0.8  # of noise, neither all nor nothing


@pytest.mark.parametrize("name", NETWORKS)
def test_one_step_from_zero_is_the_nearest_centroid_of_one_shot(name):
    tasks = vector_tasks(tasks=20, k_shot=1)
    tasks = Task(*(part._replace(inputs=F.normalize(part.inputs, dim=-1)) for part in tasks))
    network = NETWORKS[name](3, in_features=6).double()
    assert torch.equal(predictions(MAMLModule(network, 10.0, adapt_only="head"), tasks), nearest(tasks))


@pytest.mark.parametrize("name", NETWORKS)
def test_everything_can_be_learned(name):
    network = NETWORKS[name](3, in_features=6, scale=3.0).double()
    module = MAMLModule(network, 1.0, 2)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(3):  # the adapter's first layer has no gradient before its second one is above zero
        optimizer.zero_grad()
        module.meta_loss(vector_tasks()).backward()
        optimizer.step()
    assert all(parameter.grad.any() for parameter in network.parameters())


def test_images_are_classified_by_their_pixels_and_nothing_is_trained(tmp_path):
    random = torch.Generator().manual_seed(0)
    images = torch.arange(6.0).repeat_interleave(4).view(-1, 1, 1, 1) + torch.rand(24, 1, 3, 3, generator=random)
    train, test = (
        ClassDataset(each, torch.arange(len(each) // 4).repeat_interleave(4)) for each in (images, images[:12])
    )
    data = EpisodicDataModule(
        train, test_dataset=test,
        n_way=3, n_query=1, test_n_query=2, meta_batch_size=2, test_tasks=10,
    )  # fmt: skip
    module = NearestCentroidModule()
    own = trainer(tmp_path)
    own.test(module, data)
    values = module.evaluation.of("test").per_task()["query_accuracy"]
    assert values.shape == (10,)
    assert own.callback_metrics["test/query_accuracy"] == pytest.approx(float(values.mean()))
    before = [(nearest(tasks) == tasks.query.targets).float().mean(1) for tasks in data.test_dataloader()]
    assert torch.allclose(values, torch.cat(before))
    with pytest.raises(ConfigurationError, match=r"NearestCentroidModule has no parameter .* can be tested"):
        trainer(tmp_path).fit(module, data)


def test_the_embedding_of_a_network_can_be_compared(tmp_path):
    tasks = vector_tasks()
    network = nn.Linear(6, 4).double()
    embedded = Task(*(Examples(network(part.inputs).detach(), part.targets) for part in tasks))
    assert torch.equal(predictions(NearestCentroidModule(network), tasks), nearest(embedded))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Projection(0), "Projection needs n_way to be a whole number of at least 1, got 0"),
        (lambda: Projection(5, scale=0), "Projection needs scale to be above 0, got 0"),
        (lambda: Adapter(5, 2.5), "Adapter needs in_features to be a whole number of at least 1, got 2.5"),
        (lambda: Adapter(5, hidden=0), "Adapter needs hidden to be a whole number of at least 1, got 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_ids_of_texts_say_what_to_give():
    tasks = vector_tasks(dtype=torch.float32)
    tasks = Task(*(part._replace(inputs={"input_ids": part.inputs.long()}) for part in tasks))
    with pytest.raises(ConfigurationError, match=r"Projection takes vectors, got a dict\. A TextDataModule gives"):
        MAMLModule(Projection(3)).meta_loss(tasks)


def test_vectors_of_another_length_say_what_to_give():
    with pytest.raises((ConfigurationError, NetworkError), match=r"in_features=384, but an input is \(6,\)\. Give"):
        MAMLModule(Projection(3)).meta_loss(vector_tasks(dtype=torch.float32))
