"""RL-VLM-F's reward models beside the authors' code of the online method, its IQL beside CORL's.

Of the offline method a draft is released (vsreyas/RL-VLM-F): the same reward models, and CORL's IQL.
"""

import types
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref

FILE, LEARNER = "reward_model.py", "algorithms/offline/iql.py"
PAIRS, BATCH, STEPS, MODELS, SIZE = 20, 8, 2, 3, 64
ABSENT = (*ref.ABSENT, "cv2", "PIL", "vlms")
MEAN = {"sum": "the two critics' errors are summed, there their mean is taken, which Adam only sees in its epsilon"}


def windows(x, size, stride):
    """What a convolution without padding multiplies by its kernel."""
    height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
    places = [(i, j) for i in range(size) for j in range(size)]
    return jnp.concatenate(
        [
            x[:, i : i + stride * height : stride, j : j + stride * width : stride][:, :height, :width]
            for i, j in places
        ],
        -1,
    )


def rewards(checkout, undo, pictures):
    torch, module = ref.torch_double(), ref.in_double(ref.ours("rl_vlm_f"))
    peer = ref.constants_in_double(ref.theirs(checkout, FILE, ABSENT))
    peer.device = "cpu"
    module.windows = windows
    rng = np.random.default_rng(0)
    args = module.Args(
        preference_batch=BATCH, n_models=MODELS, reward_inputs="sa", reward_hidden_dims=(24, 24), stop_accuracy=1.0
    )
    picture = (SIZE, SIZE, 3) if pictures else ()
    agent = jax.jit(partial(module.init, picture=picture), static_argnums=2)(jax.random.key(0), args, ref.SPEC)
    agent = ref.in_general_position(agent, rng)
    models = peer.RewardModel(
        ref.OBS, ref.ACTION, ensemble_size=MODELS, lr=args.reward_lr, size_segment=1 if pictures else STEPS,
        capacity=PAIRS, image_reward=pictures, image_height=SIZE, image_width=SIZE, reward_model_layers=2,
        reward_model_H=24, cached_label_path="",
    )  # fmt: skip
    models.train_batch_size = BATCH
    losses = []
    models.CEloss = lambda *x: losses.append(torch.nn.functional.cross_entropy(*x)) or losses[-1]

    def side():
        if pictures:
            return rng.integers(0, 256, (PAIRS, 1, *picture)).astype(np.uint8)
        return rng.standard_normal((PAIRS, STEPS, ref.OBS + ref.ACTION))

    first, second = models.buffer_seg1, models.buffer_seg2 = side(), side()
    answers = rng.integers(0, 2, PAIRS).astype(float)
    models.buffer_label, models.buffer_index = answers[:, None], PAIRS
    told = module.Preferences(*map(jnp.asarray, (first, second, answers)))
    fit, passes = jax.jit(module.fit), iter(jax.random.split(jax.random.key(1), 100))

    def kernel(size, x):
        return x.reshape(size, size, -1, x.shape[-1]).transpose(3, 2, 0, 1)

    def partners(net):
        if not pictures:
            return {f"Dense_{i}": layer for i, layer in enumerate(x for x in net if hasattr(x, "weight"))}
        found = {f"Dense_{len(net.conv_layers)}": net.last_fc}
        for i, (layer, size) in enumerate(zip(net.conv_layers, (5, 3, 3, 3), strict=True)):
            found |= {
                f"Dense_{i}/kernel": (layer.weight, partial(kernel, size)),
                f"Dense_{i}/bias": (layer.bias, np.asarray),
            }
        return found

    def networks():
        members = [jax.tree.map(lambda x, i=i: x[i], agent.reward) for i in range(MODELS)]
        unused = [() if not pictures else tuple(net.conv_norm_layers) for net in models.ensemble]
        tied = [ref.tie_by_name(m, partners(n), n, u) for m, n, u in zip(members, models.ensemble, unused, strict=True)]
        return {f"reward model {i}": x for i, x in enumerate(tied)}

    def update():
        nonlocal agent
        key = next(passes)
        orders = jax.vmap(partial(jax.random.permutation, x=PAIRS))(jax.random.split(key, MODELS))
        agent, info = fit(agent, key[None], args, told)
        losses.clear()
        with mock.patch.object(np.random, "permutation", mock.Mock(side_effect=list(np.asarray(orders)))):
            accuracy = models.train_reward()
        return {
            "reward_loss": (ref.scalar(info["reward_loss"]), ref.scalar(sum(losses) / len(losses))),
            "accuracy": (ref.scalar(info["accuracy"]), ref.scalar(accuracy.mean())),
        }

    return ref.side_by_side(networks, update)


def learner(checkout, undo):
    """CORL's comparison of IQL, with our file's."""
    case = ref.module(ref.ROOT / "results/parity/iql-corl.py", "parity_iql_corl")
    case.ref = types.SimpleNamespace(**{**vars(ref), "ours": lambda _: ref.ours("rl_vlm_f")})
    return case.compare(checkout, undo)


CASES = {
    "": ref.Case(
        "yufeiwang63/RL-VLM-F",
        FILE,
        partial(rewards, pictures=False),
        note=f"An update is a pass over {PAIRS} answers, in batches of {BATCH}, each model in its own order.",
    ),
    "pictures": ref.Case(
        "yufeiwang63/RL-VLM-F",
        FILE,
        partial(rewards, pictures=True),
        note=f"An update is a pass over {PAIRS} answers about pictures of {SIZE} by {SIZE}, in batches of {BATCH}. "
        "Our convolutions, which are padded, are not here: with padding the last layer is larger.",
    ),
    "iql": ref.Case(
        "corl-team/CORL",
        LEARNER,
        learner,
        {
            "order": "Q's target and the actor's weights are of the new V, as in IQL's own code; there of the old one",
            **MEAN,
        },
        note="The learner alone, with the Gaussian policy.",
    ),
}
