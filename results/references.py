"""What the comparisons of results/parity/ share: starting a reference's own code, and giving both sides the same.

Nothing of a reference is copied here: its files are imported from a checkout, with stand-ins for the packages that
no update uses. Both sides begin with the same parameters (in general position: targets differ from online networks,
no bias is zero), see the same batches (numpy, from a seed) and draw the same random numbers.
"""

import contextlib
import importlib.abc
import importlib.util
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from shared.errors import InputError
from shared.sequences import Window
from shared.task import Spec
from shared.transitions import Batch

ROOT = Path(__file__).resolve().parents[1]
OBS, ACTION, ROWS = 5, 3, 16
SPEC = Spec((OBS,), ACTION, False, (-1.0,) * ACTION, (1.0,) * ACTION)

Arrays = list[Any]
"""Of one network or loss, in one order on both sides."""
Pair = tuple[Arrays, Arrays]
"""(ours, the reference's)."""


class Step(NamedTuple):
    """Both sides after the same number of updates."""

    losses: dict[str, Pair]
    """Of the update just made; none before the first."""
    parameters: dict[str, Pair]
    """Every parameter and target of the agent, by network."""


class Case(NamedTuple):
    """One comparison of an algorithm with released code."""

    reference: str
    """Its repository: owner/name."""
    file: str
    """What is imported of it, from its root."""
    compare: Callable[[Path, frozenset[str]], Iterator[Step]]
    """(checkout, deviations undone) -> the start, then one step per update, without end."""
    deviations: dict[str, str] = {}  # noqa: RUF012 (NamedTuple: nobody writes to it)
    """{name: what our file does otherwise on purpose}; undone, all together, nothing differs."""
    double: bool = True
    """Both sides in float64; False: the reference works in float32 only."""
    still: tuple[str, ...] = ()
    """Networks that no update of the compared part moves."""
    note: str = ""
    """What the comparison leaves out, or sets alike."""


# ------------------------------------------------------------------------------ the two sides' code


def module(file: Path, name: str) -> types.ModuleType:
    """A file as a module; the command line is empty while it is imported.

    Raises:
      InputError: it is not there, or a package that it needs is not.
    """
    if not file.is_file():
        raise InputError(f"There is no {file}: is it a checkout of the repository that the comparison names?")
    spec = importlib.util.spec_from_file_location(name, file)
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made  # dataclasses look themselves up there
    with mock.patch.object(sys, "argv", [str(file)]):
        try:
            spec.loader.exec_module(made)
        except ModuleNotFoundError as error:
            raise InputError(f"{file} needs a package that is not here: {error.name}.") from None
    return made


def ours(algorithm: str) -> types.ModuleType:
    """The module of one of this collection's algorithms."""
    return module(next((ROOT / "algorithms").glob(f"*/{algorithm}.py")), f"ours_{algorithm}")


_replaced: list[tuple[Any, str, Any]] = []


def replace(owner: Any, name: str, value: Any) -> None:
    """Sets an attribute of a package or class until `restore`."""
    _replaced.append((owner, name, getattr(owner, name)))
    setattr(owner, name, value)


def restore() -> None:
    """Undoes every `replace`, the last one first: one comparison changes nothing for the next."""
    while _replaced:
        setattr(*_replaced.pop())


def in_double(ours: types.ModuleType) -> types.ModuleType:
    """Our module with its constants in float64, too: where it says jnp.float32."""
    ours.jnp = types.SimpleNamespace(**{**vars(jnp), "float32": jnp.float64})
    return ours


def constants_in_double(peer: types.ModuleType) -> types.ModuleType:
    """A reference's module, whose numpy and torch have no other precision, where it says float32."""
    for name in ("np", "torch"):
        if package := getattr(peer, name, None):
            setattr(peer, name, types.SimpleNamespace(**{**vars(package), "float32": package.float64}))
    return peer


class StandIn(types.ModuleType):
    """A package, class or function of which only names are looked up; as a decorator it changes nothing."""

    __path__: list = []  # noqa: RUF012 (a package: its submodules are stand-ins, too)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and isinstance(args[0], types.FunctionType | type) else StandIn("called")

    def __mro_entries__(self, bases: tuple) -> tuple[type, ...]:
        return (object,)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports `names` and whatever is below them as stand-ins."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        inside = any(fullname == name or fullname.startswith(f"{name}.") for name in self.names)
        return importlib.util.spec_from_loader(fullname, self, is_package=True) if inside else None

    def create_module(self, spec: Any) -> types.ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


ABSENT = ("d4rl", "gym", "wandb", "pyrallis", "mujoco_py")
"""Packages that references import at their top and that no update uses."""


def theirs(checkout: Path, file: str, stand_ins: tuple[str, ...] = ABSENT) -> types.ModuleType:
    """A file of a reference as a module; what lies beside it and in the checkout's root can be imported by it."""
    sys.meta_path.insert(0, _Finder(stand_ins))
    sys.path[:0] = [str((checkout / file).parent), str(checkout)]
    return module(checkout / file, "theirs_" + Path(file).stem)


def torch_double() -> Any:
    """torch, of which new tensors are float64, also where a reference says float."""
    try:
        import torch
    except ModuleNotFoundError:
        raise InputError("This comparison needs PyTorch: pip install torch in an environment of its own.") from None
    torch.set_default_dtype(torch.float64)
    torch.FloatTensor, torch.float, torch.Tensor.float = torch.DoubleTensor, torch.float64, torch.Tensor.double
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return torch


# --------------------------------------------------------------------------------- the same weights


def shaken(tree: Any, rng: np.random.Generator) -> Any:
    """`tree` with normal random numbers added, so small that no tanh saturates: 0.1, in kernels 0.5 / sqrt(fan in)."""

    def shake(x: Any) -> jax.Array:
        size = 0.5 / np.sqrt(x.shape[-2]) if x.ndim > 1 and x.shape[-2] > 4 else 0.1
        return jnp.asarray(np.asarray(x) + size * rng.standard_normal(x.shape))

    return jax.tree.map(shake, tree)


def in_general_position(agent: Any, rng: np.random.Generator, keep: tuple[str, ...] = ()) -> Any:
    """An agent whose networks and targets all differ, and whose biases are not zero; `keep`: fields left alone."""
    agent = jax.tree.map(lambda x: jnp.asarray(x, float) if jnp.issubdtype(x.dtype, jnp.floating) else x, agent)
    fields = {name: getattr(agent, name) for name in agent.__dataclass_fields__}
    networks = [name for name, tree in fields.items() if is_network(tree) and name not in keep]
    return agent.replace(**{name: shaken(fields[name], rng) for name in networks})


def agent_of(module: types.ModuleType, args: Any, rng: np.random.Generator, spec: Spec = SPEC) -> Any:
    """A new agent in general position, everything in the process's precision."""
    return in_general_position(jax.jit(module.init, static_argnums=2)(jax.random.key(0), args, spec), rng)


def is_network(tree: Any) -> bool:
    return isinstance(tree, dict) and ("params" in tree or any(is_network(part) for part in tree.values()))


def _natural(text: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def _layers(tree: Any) -> Iterator[tuple[str, dict]]:
    """(path, parameters) of everything that has some, in the order of the names' numbers."""
    own = {k: v for k, v in tree.items() if not isinstance(v, dict)}
    if own:
        yield "", own
    for name in sorted((k for k in tree if k not in own), key=_natural):
        for path, found in _layers(tree[name]):
            yield f"{name}/{path}".strip("/"), found


class Tied(NamedTuple):
    """A parameter of ours and where the reference has it."""

    array: np.ndarray
    """In the reference's layout."""
    tensor: Any


def tie(tree: Any, network: Any, others: dict[str, Any] | None = None) -> list[Tied]:
    """Which of our parameters is which of a torch module's: linear layers and normalisations in their order.

    Args:
      tree: flax parameters of one network, or of an ensemble stacked on a leading axis.
      network: the torch module, a list of them (the members of the ensemble), or one with stacked layers [E, in, out].
      others: {a path in our tree: tensor} of parameters that belong to no layer.

    Raises:
      InputError: a parameter of either side has no partner.
    """
    if isinstance(network, list | tuple):
        members = [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(len(network))]
        return [tied for member, one in zip(members, network) for tied in tie(member, one, others)]
    layers = dict(_layers(tree["params"]))
    others = dict(others or {})
    own = {path: value for path, value in _flat(tree["params"]) if path in others}
    if own.keys() != others.keys():
        raise InputError(f"Our network has no {sorted(others.keys() - own.keys())}; it has {sorted(layers)}.")
    tied = [Tied(np.asarray(own[path]).reshape(others[path].shape), others[path]) for path in others]
    done = {id(tensor) for tensor in others.values()}
    dense = [p for p in layers.values() if "kernel" in p]
    norms = [p for p in layers.values() if "scale" in p]
    with_weights = [
        m
        for m in network.modules()
        if getattr(m, "weight", None) is not None and id(m.weight) not in done and hasattr(m.weight, "ndim")
    ]
    lines = [m for m in with_weights if m.weight.ndim > 1]
    scales = [m for m in with_weights if m.weight.ndim == 1]
    if len(lines) != len(dense) or len(scales) != len(norms):
        raise InputError(f"{len(dense)} layers, {len(norms)} norms; the reference: {len(lines)}, {len(scales)}.")
    for ours, line in zip(dense, lines):
        kernel = np.asarray(ours["kernel"])
        tied.append(Tied(kernel if kernel.ndim == 3 else kernel.T, line.weight))
        if "bias" in ours:
            bias = np.asarray(ours["bias"])
            alike = bias.size == np.prod(line.bias.shape)
            tied.append(Tied(bias.reshape(line.bias.shape) if alike else bias, line.bias))
    for ours, scale in zip(norms, scales):
        tied += [Tied(np.asarray(ours["scale"]), scale.weight), Tied(np.asarray(ours["bias"]), scale.bias)]
    lacking = {id(p) for p in network.parameters() if getattr(p, "requires_grad", True)} - {id(t.tensor) for t in tied}
    wrong = [t for t in tied if t.array.shape != tuple(t.tensor.shape)]
    if lacking or wrong or len(tied) != len(jax.tree.leaves(tree)):
        raise InputError(f"{len(lacking)} parameters of the reference have no partner, {len(wrong)} another shape.")
    return tied


def tie_by_name(tree: Any, partners: dict[str, Any], network: Any, unused: tuple = ()) -> list[Tied]:
    """As `tie`, where the sides' layers come in other orders: a transformer's, say.

    Args:
      tree: flax parameters of one network.
      partners: {path in our tree: a torch layer, or, of a single parameter, (tensor, ours -> its layout)}.
      network: the torch module, each of whose parameters must be somebody's partner.
      unused: layers of it that no loss depends on.
    """
    own, tied, left = dict(_flat(tree["params"])), [], {id(p) for p in network.parameters() if p.requires_grad}
    left -= {id(p) for layer in unused for p in layer.parameters()}

    def pair(path: str, tensor: Any, laid: Callable) -> None:
        if path not in own:
            raise InputError(f"Our network has no {path}; it has {sorted(own)}.")
        tied.append(Tied(laid(np.asarray(own.pop(path))), tensor))
        left.discard(id(tensor))

    for path, partner in partners.items():
        if isinstance(partner, tuple):
            pair(path, *partner)
            continue
        name = next(n for n in ("kernel", "scale", "embedding") if f"{path}/{n}" in own or n == "embedding")
        as_ours = name != "kernel" or type(partner).__name__ == "Conv1D"  # GPT-2's layers are [in, out]
        pair(f"{path}/{name}", partner.weight, (lambda x: x) if as_ours else np.transpose)
        if getattr(partner, "bias", None) is not None:
            pair(f"{path}/bias", partner.bias, lambda x: x)
    if wrong := [tuple(t.tensor.shape) for t in tied if t.array.shape != tuple(t.tensor.shape)]:
        raise InputError(f"The reference's parameters of shapes {wrong} have partners of others.")
    if own or left:
        raise InputError(f"Without a partner: {sorted(own)} of ours, {len(left)} parameters of the reference.")
    return tied


def gpt_of_2021() -> None:
    """transformers (4.30) takes what files made for its 4.5 decorate their GPT-2 with."""
    try:
        from transformers import file_utils
    except ModuleNotFoundError:
        raise InputError("This comparison needs the package transformers: pip install transformers==4.30.2.") from None
    replace(file_utils, "add_code_sample_docstrings", lambda *_, **__: lambda function: function)


def windows(rng, rows: int, steps: int, limit: int, scale: float) -> Window:
    """Windows [rows, steps] of episodes of `limit` steps, of which some begin with padding; returns of size `scale`."""
    shape = rows, steps
    mask = (np.arange(steps) >= rng.integers(0, steps, rows)[:, None]).astype(float)
    first = rng.integers(0, limit - steps + 1, rows)[:, None]
    arrays = {
        "timestep": np.where(mask > 0, first + np.arange(steps), 0),
        "obs": mask[..., None] * rng.standard_normal((*shape, OBS)),
        "action": mask[..., None] * np.tanh(rng.standard_normal((*shape, ACTION))),
        "return_to_go": mask * scale * rng.standard_normal(shape),
    }
    return Window(mask=jnp.asarray(mask), **jax.tree.map(jnp.asarray, arrays))


def prompted(torch, window: Window, scale: float, one_more: bool = False) -> list:
    """A window as code that stems from Prompt-DT takes it; `one_more`: its returns have a step that it leaves out."""
    to_go = np.asarray(window.return_to_go)[..., None] / scale
    to_go = np.concatenate([to_go, np.ones_like(to_go[:, :1])], 1) if one_more else to_go
    nothing = np.zeros(window.mask.shape)
    arrays = window.obs, window.action, nothing, nothing, to_go, window.timestep, window.mask
    return [torch.tensor(np.asarray(x)) for x in arrays]


def gpt_partners(gpt: Any, path: str) -> dict[str, Any]:
    """Of the blocks `path`/Block_i of our transformers, those of a GPT-2 of the package transformers: `tie_by_name`."""
    layers = {"LayerNorm_0": "ln_1", "Dense_0": "attn.c_attn", "Dense_1": "attn.c_proj"}
    layers |= {"LayerNorm_1": "ln_2", "Dense_2": "mlp.c_fc", "Dense_3": "mlp.c_proj"}
    blocks = enumerate(gpt.h)
    return {f"{path}/Block_{i}/{a}": block.get_submodule(b) for i, block in blocks for a, b in layers.items()}


def encoder_partners(encoder: Any, path: str) -> dict[str, Any]:
    """The same, and of the last normalisation, those of a torch.nn.TransformerEncoder."""
    names = {"LayerNorm_0": "norm1", "Dense_1": "self_attn.out_proj", "LayerNorm_1": "norm2"}
    names |= {"Dense_2": "linear1", "Dense_3": "linear2"}
    found = {f"{path}/LayerNorm_0": encoder.norm}
    for i, layer in enumerate(encoder.layers):
        found |= {f"{path}/Block_{i}/{ours}": layer.get_submodule(theirs) for ours, theirs in names.items()}
        found[f"{path}/Block_{i}/Dense_0/kernel"] = layer.self_attn.in_proj_weight, np.transpose
        found[f"{path}/Block_{i}/Dense_0/bias"] = layer.self_attn.in_proj_bias, np.asarray
    return found


def split_last(tree: dict) -> dict:
    """`tree` with its last Dense layer as two, where a reference has one for the mean, one for the deviation."""
    layers = dict(tree["params"])
    last = max((name for name in layers if name.startswith("Dense_")), key=_natural)
    halves = {name: jnp.split(x, 2, axis=-1) for name, x in layers.pop(last).items()}
    number = int(last.removeprefix("Dense_"))
    for i in range(2):
        layers[f"Dense_{number + i}"] = {name: half[i] for name, half in halves.items()}
    return {"params": layers}


def _flat(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        here = f"{path}/{name}".strip("/")
        yield from _flat(value, here) if isinstance(value, dict) else [(here, value)]


def give(tied: list[Tied]) -> None:
    """Copies our parameters into the reference's."""
    for array, tensor in tied:
        tensor.data.copy_(tensor.data.new_tensor(array))


def values(tied: list[Tied]) -> Pair:
    """What both sides have now (`tie` again first: our arrays do not change)."""
    return [t.array for t in tied], [t.tensor.detach().cpu().numpy().copy() for t in tied]


class Buffer:
    """A replay buffer of theirs: gives one batch."""

    def __init__(self, batch):
        self.batch = batch

    def sample(self, size):
        return self.batch


def side_by_side(
    networks: Callable[[], dict[str, list[Tied]]], update: Callable[[], dict[str, Pair]]
) -> Iterator[Step]:
    """The steps of a comparison with PyTorch: our parameters go to the reference once, then both sides update.

    Args:
      networks: -> every network as it is now.
      update: makes one update of both sides -> the losses.
    """
    for network in networks().values():
        give(network)
    losses: dict[str, Pair] = {}
    while True:
        yield Step(losses, {name: values(network) for name, network in networks().items()})
        losses = update()


def scalar(x: Any) -> Arrays:
    """A loss of either side."""
    return [np.asarray(x.detach().cpu() if hasattr(x, "detach") else x, np.float64).reshape(())]


# --------------------------------------------------------------------------------- the same batches


def batches(rng: np.random.Generator, rows: int = ROWS, obs: int = OBS, action: int = ACTION) -> Iterator[dict]:
    """Batches {name: numpy array} without end: obs, action in (-1, 1), reward, terminal (some), next_obs, ..."""
    while True:
        normal = rng.standard_normal
        yield {
            "obs": normal((rows, obs)),
            "action": np.tanh(normal((rows, action))),
            "reward": normal(rows),
            "terminal": (rng.random(rows) < 0.3).astype(np.float64),
            "next_obs": normal((rows, obs)),
            "next_action": np.tanh(normal((rows, action))),
            "return_to_go": normal(rows),
        }


FIELDS = ("obs", "action", "reward", "terminal", "next_obs")


def batch(rows: dict, *fields: str) -> Batch:
    """As our updates take it: the usual fields, and `fields`."""
    return Batch(**{name: jnp.asarray(rows[name]) for name in (*FIELDS, *fields)})


def tensors(rows: dict, *names: str) -> list:
    """Those of a batch as torch tensors; vectors [B] as columns [B, 1]."""
    import torch

    return [torch.tensor(x[:, None] if x.ndim == 1 else x) for x in (rows[name] for name in names)]


# ---------------------------------------------------------------------------- the same random numbers


class Draw(NamedTuple):
    """What one side drew."""

    kind: str
    """normal (0, 1), uniform in [0, 1), or integers."""
    array: np.ndarray


class Noise:
    """Random numbers that our side draws first and the reference is given in turn."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.drawn: list[Draw] = []
        """By our side since `ours` began, in order."""

    @contextlib.contextmanager
    def ours(self) -> Iterator[None]:
        """jax.random draws from here; jit is off, so that every draw is made once for each time it runs."""
        self.drawn = []
        shapes_only = False
        real = {name: getattr(jax.random, name) for name in ("normal", "uniform", "randint")}
        real_eval_shape = jax.eval_shape

        def eval_shape(*args, **kwargs):  # flax asks a parameter's initialiser for its shape whenever it is used
            nonlocal shapes_only
            outer, shapes_only = shapes_only, True
            try:
                return real_eval_shape(*args, **kwargs)
            finally:
                shapes_only = outer

        def draw(kind: str, array: np.ndarray) -> jax.Array:
            self.drawn.append(Draw(kind, np.asarray(array)))
            return jnp.asarray(array)

        def normal(key, shape=(), dtype=float, **_):
            return draw("normal", self.rng.standard_normal(shape))

        def uniform(key, shape=(), dtype=float, minval=0.0, maxval=1.0, **_):
            return minval + (maxval - minval) * draw("uniform", self.rng.random(shape))

        def randint(key, shape, minval, maxval, dtype=int, **_):
            return draw("integers", self.rng.integers(minval, maxval, shape))

        def given(function):
            return lambda *args, **kwargs: (real[function.__name__] if shapes_only else function)(*args, **kwargs)

        with contextlib.ExitStack() as stack:
            for function in (normal, uniform, randint):
                stack.enter_context(mock.patch.object(jax.random, function.__name__, given(function)))
            stack.enter_context(mock.patch.object(jax, "eval_shape", eval_shape))
            stack.enter_context(jax.disable_jit())
            yield

    @contextlib.contextmanager
    def theirs(self, draws: list[Draw] | None = None) -> Iterator[None]:
        """torch draws what our side drew, or `draws`, in order, each of its kind and size, and all of them."""
        import torch

        left = list(self.drawn if draws is None else draws)

        def take(kind: str, shape: Any) -> Any:
            if not left:
                raise InputError(f"The reference draws more random numbers: {kind} {tuple(shape)}.")
            draw = left.pop(0)
            if draw.kind != kind or draw.array.size != np.prod(shape, dtype=int):
                raise InputError(f"Drawn: {draw.kind} {draw.array.shape}; the reference: {kind} {tuple(shape)}.")
            return torch.tensor(draw.array).reshape(tuple(shape))

        def size_of(shape: tuple) -> tuple:
            return tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else tuple(shape)

        def torch_normal(mean, std, *_, **__):
            shape = torch.broadcast_shapes(*(x.shape for x in (mean, std) if hasattr(x, "shape")))
            return mean + std * take("normal", shape)

        def uniform_(self, low=0.0, high=1.0, **_):
            return self.copy_(low + (high - low) * take("uniform", self.shape))

        patches = [
            (torch, "randn_like", lambda x, **_: take("normal", x.shape)),
            (torch, "randn", lambda *shape, **_: take("normal", size_of(shape))),
            (torch, "normal", torch_normal),
            (torch.distributions.normal, "_standard_normal", lambda shape, *_, **__: take("normal", shape)),
            (torch.Tensor, "normal_", lambda x, mean=0.0, std=1.0, **_: x.copy_(mean + std * take("normal", x.shape))),
            (torch, "rand", lambda *shape, **_: take("uniform", size_of(shape))),
            (torch, "rand_like", lambda x, **_: take("uniform", x.shape)),
            (torch.Tensor, "uniform_", uniform_),
            (torch, "randint", lambda low, high, size, **_: take("integers", size)),
        ]
        with contextlib.ExitStack() as stack:
            for owner, name, function in patches:
                stack.enter_context(mock.patch.object(owner, name, function))
            yield
        if left:
            raise InputError(f"The reference draws {len(left)} random numbers less.")
