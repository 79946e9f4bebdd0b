"""One token for many sequences gives what whole sequences give, and touches no state but theirs."""

import math
import re

import pytest
import torch
from torch import Tensor

from kernels import Backend, Mamba3State, mamba3_mimo, mamba3_mimo_step
from tests.kernels.inputs import Sizes, assert_close, random_arguments, random_state
from tests.kernels.recurrence import mamba3_mimo_recurrence

pytestmark = pytest.mark.usefixtures("poisoned")

PER_TOKEN = ("C", "B", "x", "z", "adt", "dt", "trap", "angles")
SMALL = Sizes(heads=2, headdim=16, d_state=16, rank=2)
# A state in one part; in two that it does not fill; in more than are written out in the loop.
SIZES = [
    SMALL,
    Sizes(heads=1, headdim=24, d_state=48, rank=4, rope_fraction=1.0),
    Sizes(heads=1, headdim=64, d_state=64, rank=8),
]
STEPS = 3
if torch.cuda.is_available():
    SIZES += [
        Sizes(heads=1, headdim=64, d_state=64, rank=4),
        Sizes(heads=1, headdim=128, d_state=128, rank=1),
        Sizes(heads=1, headdim=16, d_state=16, rank=8),
        Sizes(heads=8, headdim=64, d_state=64, rank=4),
        Sizes(heads=8, headdim=96, d_state=24, rank=8, rope_fraction=1.0),
        Sizes(heads=3, headdim=128, d_state=128, rank=8, rope_fraction=1.0),
        Sizes(heads=5, headdim=48, d_state=80, rank=1),
    ]
    STEPS = 50
BACKENDS: tuple[Backend, ...] = ("reference", "triton")
SLOTS = [4, 0, 2]
UNUSED = [1, 3, 5]


def pool_of(sizes: Sizes, device: torch.device, dtype: torch.dtype = torch.float32) -> Mamba3State:
    """Six states, those in UNUSED not numbers."""
    pool = Mamba3State(*(t.to(device) for t in random_state(sizes, 6, dtype=dtype)))
    for part in pool:
        part[UNUSED] = torch.nan
    return pool


def copy_of(pool: Mamba3State) -> Mamba3State:
    return Mamba3State(*(part.clone() for part in pool))


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.int32), other.contiguous().view(torch.int32))


def arguments_of(
    sizes: Sizes, steps: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Of as many sequences as SLOTS has, each of `steps` tokens."""
    return {name: t.to(device) for name, t in random_arguments(sizes, [steps] * len(SLOTS), dtype=dtype).items()}


def token(arguments: dict[str, Tensor], t: int) -> dict[str, Tensor]:
    """Token t of each sequence, as views into the packed arguments."""
    at = {name: arguments[name].unflatten(0, (len(SLOTS), -1))[:, t] for name in PER_TOKEN}
    return {name: tensor for name, tensor in arguments.items() if name != "cu_seqlens"} | at


def run(arguments: dict[str, Tensor], pool: Mamba3State, steps: int, backend: Backend) -> Tensor:
    slots = torch.tensor(SLOTS)
    outputs = [mamba3_mimo_step(**token(arguments, t), pool=pool, slots=slots, backend=backend) for t in range(steps)]
    return torch.stack(outputs, 1).flatten(0, 1)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=["f32", "bf16"])
def test_many_steps_give_what_the_recurrence_gives(
    sizes: Sizes, backend: Backend, dtype: torch.dtype, bound: float, device: torch.device
) -> None:
    arguments = arguments_of(sizes, STEPS, device, dtype)
    pool = pool_of(sizes, device)
    before = Mamba3State(*(part[SLOTS].cpu() for part in pool))
    expected_y, expected = mamba3_mimo_recurrence({name: t.cpu() for name, t in arguments.items()}, before)

    y = run(arguments, pool, STEPS, backend)

    assert y.dtype == dtype
    assert_close("y", y.cpu(), expected_y, bound)
    for name, part in pool._asdict().items():
        assert_close(name, part[SLOTS].cpu(), getattr(expected, name), 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_steps_give_what_the_operation_gives_on_whole_sequences(backend: Backend, device: torch.device) -> None:
    arguments = arguments_of(SMALL, STEPS, device)
    pool = pool_of(SMALL, device)
    before = Mamba3State(*(part[SLOTS] for part in pool))
    whole, final = mamba3_mimo(**arguments, initial_state=before, return_final_state=True, backend=backend)

    y = run(arguments, pool, STEPS, backend)

    assert_close("y", y, whole, 1e-5)
    assert final is not None
    for name, part in pool._asdict().items():
        assert_close(name, part[SLOTS], getattr(final, name), 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unused_slots_keep_every_bit(backend: Backend, device: torch.device) -> None:
    pool = pool_of(SMALL, device)
    before = copy_of(pool)
    run(arguments_of(SMALL, 2, device), pool, 2, backend)
    for part, was in zip(pool, before, strict=True):
        assert same_bits(part[UNUSED], was[UNUSED])
        assert not bool((part[SLOTS] == was[SLOTS]).all())


@pytest.mark.parametrize("sizes", SIZES[:2], ids=str)
def test_a_sequence_gets_the_same_bits_alone_in_any_slot_and_in_any_order(sizes: Sizes, device: torch.device) -> None:
    arguments = token(arguments_of(sizes, 1, device), 0)
    pool = pool_of(sizes, device)
    alone, reordered = copy_of(pool), copy_of(pool)
    together = mamba3_mimo_step(**arguments, pool=pool, slots=torch.tensor(SLOTS), backend="triton")

    last = arguments | {name: arguments[name][2:] for name in PER_TOKEN}
    for part in alone:
        part[1] = part[SLOTS[2]]
    y = mamba3_mimo_step(**last, pool=alone, slots=torch.tensor([1]), backend="triton")
    assert same_bits(y[0], together[2])
    reverse = arguments | {name: arguments[name].flip(0) for name in PER_TOKEN}
    y = mamba3_mimo_step(**reverse, pool=reordered, slots=torch.tensor(SLOTS[::-1]), backend="triton")
    assert same_bits(y.flip(0), together)
    for part, one, other in zip(pool, alone, reordered, strict=True):
        assert same_bits(one[1], part[SLOTS[2]])
        assert same_bits(other, part)


@pytest.mark.parametrize("backend", BACKENDS)
def test_slots_may_be_of_either_integer_type_and_on_either_device(backend: Backend, device: torch.device) -> None:
    arguments = token(arguments_of(SMALL, 1, device), 0)
    pools = [pool_of(SMALL, device) for _ in range(3)]
    slots = torch.tensor(SLOTS)
    results = [
        mamba3_mimo_step(**arguments, pool=pool, slots=given, backend=backend)
        for pool, given in zip(pools, (slots, slots.int(), slots.int().to(device)), strict=True)
    ]
    for pool, y in zip(pools[1:], results[1:], strict=True):
        assert same_bits(y, results[0])
        for part, first in zip(pool, pools[0], strict=True):
            assert same_bits(part, first)


def test_arguments_may_be_of_different_types(device: torch.device) -> None:
    """As a layer in bfloat16 passes them: its projection rounded, steps and weights not."""
    arguments = arguments_of(SMALL, 1, device)
    rounded = {name: arguments[name].bfloat16() for name in ("C", "B", "x", "z", "trap", "angles")}
    arguments |= rounded
    pool = pool_of(SMALL, device)
    expected, _ = mamba3_mimo_recurrence(
        {name: t.cpu() for name, t in arguments.items()}, Mamba3State(*(part[SLOTS].cpu() for part in pool))
    )
    y = mamba3_mimo_step(**token(arguments, 0), pool=pool, slots=torch.tensor(SLOTS), backend="triton")
    assert y.dtype == torch.bfloat16
    assert_close("y", y.cpu(), expected.bfloat16(), 1e-4 + 2**-9)


def test_float64_agrees_with_the_recurrence_to_rounding() -> None:
    cpu = torch.device("cpu")
    arguments = arguments_of(SMALL, 30, cpu, torch.float64)
    pool = pool_of(SMALL, cpu, torch.float64)
    expected, _ = mamba3_mimo_recurrence(arguments, Mamba3State(*(part[SLOTS] for part in pool)))
    assert_close("y", run(arguments, pool, 30, "auto"), expected, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("angle", [0.0, 6.2831845, 6.2831855, -1e-9, -7.0, 40.0])
def test_angles_stay_within_a_turn(backend: Backend, angle: float, device: torch.device) -> None:
    arguments = token(arguments_of(SMALL, 1, device), 0)
    arguments["angles"] = torch.full_like(arguments["angles"], -1e-12)
    pool = pool_of(SMALL, device)
    pool.angle.fill_(angle)
    mamba3_mimo_step(**arguments, pool=pool, slots=torch.tensor(SLOTS), backend=backend)
    after = pool.angle[SLOTS].double()
    assert 0 <= float(after.min()) <= float(after.max()) < 2 * math.pi
    apart = torch.remainder(after - angle + math.pi, 2 * math.pi) - math.pi
    assert float(apart.abs().max()) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS if torch.cuda.is_available() else ("reference",))
def test_rotations_stay_exact_over_thousands_of_steps(backend: Backend, device: torch.device) -> None:
    steps = 2000
    arguments = arguments_of(Sizes(heads=1), steps, device)
    arguments["angles"] = arguments["angles"].abs()  # thousands of radians
    pool = pool_of(Sizes(heads=1), device)
    before = Mamba3State(*(part[SLOTS].cpu() for part in pool))
    _, expected = mamba3_mimo_recurrence({name: t.cpu() for name, t in arguments.items()}, before)
    run(arguments, pool, steps, backend)
    assert_close("angle", pool.angle[SLOTS].cpu(), expected.angle, 1e-5)
    assert_close("ssm", pool.ssm[SLOTS].cpu(), expected.ssm, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_sequences_nothing_is_done(backend: Backend, device: torch.device) -> None:
    arguments = token(arguments_of(SMALL, 1, device), 0)
    none = arguments | {name: arguments[name][:0] for name in PER_TOKEN}
    pool = pool_of(SMALL, device)
    before = copy_of(pool)
    y = mamba3_mimo_step(**none, pool=pool, slots=torch.tensor([], dtype=torch.int64), backend=backend)
    assert y.shape == (0, SMALL.heads, SMALL.headdim)
    assert all(same_bits(part, was) for part, was in zip(pool, before, strict=True))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_slots_on_the_cpu_let_the_device_run_on(device: torch.device) -> None:
    arguments, pool = token(arguments_of(SMALL, 1, device), 0), pool_of(SMALL, device)
    slots = torch.tensor(SLOTS)
    mamba3_mimo_step(**arguments, pool=pool, slots=slots)
    torch.cuda.set_sync_debug_mode("error")
    try:
        mamba3_mimo_step(**arguments, pool=pool, slots=slots)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("C", torch.zeros(3, 16), "C has shape (3, 16); it must be (m, R, N)"),
        ("B", torch.zeros(4, 2, 16), "B has shape (4, 2, 16); with m=3, H=2, P=16, N=16, R=2 and S=4 it must have"),
        ("z", torch.zeros(3, 2, 8), "z has shape (3, 2, 8); with m=3"),
        ("angles", torch.zeros(3, 9), "angles has S=9 angles; d_state N=16 has only 8 pairs"),
        ("mimo_o", torch.zeros(2, 4, 16), "mimo_o has shape (2, 4, 16); with m=3"),
        ("dt", torch.zeros(3, 2, dtype=torch.float16), "dt is torch.float16; it must be float32, bfloat16 or float64"),
        ("D", torch.zeros(2, device="meta"), "D is on meta but x is on "),
        ("slots", torch.tensor([0, 2]), "slots is torch.int64 of shape (2,); with m=3 it must be int32 or int64 of "),
        ("slots", torch.tensor([0.0, 1.0, 2.0]), "slots is torch.float32 of shape (3,); with m=3 it must be int32"),
        ("slots", torch.tensor([0, 6, 2]), "slots has 6; the pool's slots go from 0 to 5"),
        ("slots", torch.tensor([0, -1, 2]), "slots has -1; the pool's slots go from 0 to 5"),
        ("slots", torch.tensor([4, 2, 4]), "slots has 4 twice"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("no_launch")
def test_an_impossible_argument_is_refused_by_name_and_nothing_is_updated(
    name: str, value: Tensor, message: str, backend: Backend, device: torch.device
) -> None:
    arguments = token(arguments_of(SMALL, 1, device), 0)
    pool = pool_of(SMALL, device)
    before = copy_of(pool)
    wrong: dict[str, Tensor] = arguments | {"slots": torch.tensor(SLOTS)}
    wrong[name] = value if value.is_meta or name == "slots" else value.to(device)
    with pytest.raises(ValueError, match=re.escape(message)):
        mamba3_mimo_step(**wrong, pool=pool, backend=backend)  # type: ignore[arg-type]
    assert all(same_bits(part, was) for part, was in zip(pool, before, strict=True))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("ssm", lambda t: t[..., :8], "pool.ssm has shape (6, 2, 16, 8); with H=2, P=16, N=16, R=2, S=4 and 6 slots"),
        ("k", lambda t: t[:5], "pool.k has shape (5, 2, 2, 16); with H=2, P=16, N=16, R=2, S=4 and 6 slots"),
        ("x", lambda t: t.bfloat16(), "pool.x is torch.bfloat16; with x of torch.float32 it must be torch.float32"),
        ("ssm", lambda t: t.mT.contiguous().mT, "pool.ssm has strides (512, 256, 1, 16); it must be contiguous"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("no_launch")
def test_an_impossible_pool_is_refused_by_part(
    part: str, change: object, message: str, backend: Backend, device: torch.device
) -> None:
    assert callable(change)
    pool = pool_of(SMALL, device)
    pool = pool._replace(**{part: change(getattr(pool, part))})
    with pytest.raises(ValueError, match=re.escape(message)):
        mamba3_mimo_step(
            **token(arguments_of(SMALL, 1, device), 0), pool=pool, slots=torch.tensor(SLOTS), backend=backend
        )
