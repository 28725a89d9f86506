"""Students: the papers' sizes to the number, the additions of eq. 5, and a detector and teacher that never move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stemma.networks import detector, encoder, students
from stemma.networks.encoder import EncoderNetwork
from stemma.networks.students import KINDS, PAPER, SIZES, STARTER, Frozen, Guidance, Kind, Size, Student

SIDE = 96
TINY = Size(name="starter", stem=4, guidance=(4, 8, 8), widths=(8, 16, 16))


def frozen() -> Frozen:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Frozen(detector.build("starter").backbone, EncoderNetwork(encoder.STARTER))


def guidance(size: Size, side: int = SIDE, seed: int = 0) -> Guidance:
    generator = torch.Generator().manual_seed(seed)
    f2, f3, f4 = (
        torch.rand(2, channels, -(-side // stride), -(-side // stride), generator=generator)
        for channels, stride in zip(size.guidance, (4, 8, 16), strict=True)
    )
    return f2, f3, f4


def tiny(kind: Kind) -> Student:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Student(TINY, kind).eval()


def test_the_papers_students_have_its_parameters_and_multiply_adds() -> None:
    """OE-SIR Table 2: 8.02M, 7.93M, 7.93M; 1.49e9, 1.13e9, 1.13e9. Its teacher row is ResNet50 through conv4_x."""
    found = students.costs(PAPER)
    assert {kind: found[kind].parameters for kind in KINDS} == {"s1": 8_015_936, "s2": 7_931_392, "s3": 7_931_392}
    gmac = {name: cost.multiply_adds / 1e9 for name, cost in found.items()}
    assert gmac == pytest.approx({"s1": 1.467, "s2": 1.118, "s3": 1.118, "teacher": 4.09, "guide": 3.28}, abs=5e-3)
    assert (found["teacher"].parameters, found["guide"].parameters) == (23_508_032, 8_543_296)


def test_the_starters_students_cost_the_same_share_of_their_teacher() -> None:
    found, papers = students.costs(STARTER), 1.13 / 3.33
    share = {kind: found[kind].multiply_adds / found["teacher"].multiply_adds for kind in KINDS}
    assert share["s2"] == pytest.approx(papers, abs=0.03) and share["s3"] == pytest.approx(papers, abs=0.05)
    assert share["s1"] > share["s3"] > share["s2"]


def test_the_count_is_that_of_a_hook_on_every_convolution() -> None:
    counted = 0

    def hook(module: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal counted
        assert isinstance(module, nn.Conv2d)
        counted += out[0].numel() * module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]

    network, image = tiny("s3"), torch.zeros(1, 3, SIDE, SIDE)
    one = tuple(part[:1] for part in guidance(TINY))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(hook)
    assert students.multiply_adds(network, image, one) == counted > 0


@pytest.mark.parametrize("size", ["starter", "paper"])
def test_a_student_gives_the_shape_of_its_teachers_map(size: str) -> None:
    with torch.device("meta"):
        fixed = Frozen(detector.build(size).backbone, EncoderNetwork(encoder.SIZES[size]))  # type: ignore[arg-type]
        image_B3HW = torch.empty(2, 3, 130, 200)
        made = {kind: Student(SIZES[size], kind)(image_B3HW, fixed.guidance(image_B3HW)) for kind in KINDS}
        target = fixed.target(image_B3HW)
    assert target.shape == (2, SIZES[size].widths[-1], 5, 7)
    assert all(one.shape == target.shape for one in made.values())
    if size == "paper":
        # where the sizes are the same there is nothing to learn between F and y
        assert all(isinstance(one, nn.Identity) for one in Student(PAPER, "s3").to("meta").guides or ())


def test_guides_are_added_where_equation_5_says() -> None:
    network, image = tiny("s3"), torch.zeros(2, 3, SIDE, SIDE)
    f2, f3, f4 = guidance(TINY)
    assert network.guides is not None
    y1 = network.blocks[0](f2) + network.guides[0](f3)
    y2 = network.blocks[1](y1) + network.guides[1](f4)
    assert torch.equal(network(image, (f2, f3, f4)), network.blocks[2](y2))
    # F_3 has as many channels as y_1: it is added as it is
    assert torch.equal(network.guides[0](f3), f3)


def test_each_student_sees_what_its_name_says() -> None:
    image, other = torch.rand(2, 2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    f2, f3, f4 = guidance(TINY)
    g2, g3, g4 = guidance(TINY, seed=5)
    seen = {
        kind: {
            name
            for name, inputs in {
                "image": (other, (f2, f3, f4)),
                "f2": (image, (g2, f3, f4)),
                "f3": (image, (f2, g3, f4)),
                "f4": (image, (f2, f3, g4)),
            }.items()
            if not torch.equal(tiny(kind)(image, (f2, f3, f4)), tiny(kind)(*inputs))
        }
        for kind in KINDS
    }
    assert seen == {"s1": {"image"}, "s2": {"f2"}, "s3": {"f2", "f3", "f4"}}


def test_guidance_is_what_the_detector_itself_computes() -> None:
    fixed = frozen()
    x_B3HW = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    f2, f3, f4 = fixed.guidance(x_B3HW)
    backbone = fixed.backbone
    assert isinstance(backbone, detector.Lite0Pyramid)
    assert torch.equal(f4, backbone.cells(backbone.stem(x_B3HW)))
    assert [one.shape[1:] for one in (f2, f3, f4)] == [(24, 24, 24), (40, 12, 12), (112, 6, 6)]


def test_the_papers_guidance_is_the_bottom_up_path_of_its_detector() -> None:
    with torch.device("meta"):
        fixed = Frozen(detector.build("paper").backbone, EncoderNetwork(encoder.PAPER))
    backbone: Any = fixed.backbone
    body = backbone.body.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in body.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.ones_like(tensor) if name.endswith("var") else 0.1 * torch.rand(1, generator=generator))
    x_B3HW = torch.rand(1, 3, 64, 64, generator=generator)
    with torch.no_grad():
        stages = list(body(x_B3HW).values())[:3]
    assert all(torch.equal(a, b) for a, b in zip(fixed.guidance(x_B3HW), stages, strict=True))


def test_frozen_stays_in_eval_mode_and_asks_for_no_gradient() -> None:
    fixed = nn.Sequential(frozen()).train()[0]
    assert not any(module.training for module in fixed.modules())
    assert not any(parameter.requires_grad for parameter in fixed.parameters())
    x_B3HW = torch.rand(1, 3, 64, 64, requires_grad=True)
    assert not fixed.target(x_B3HW).requires_grad
