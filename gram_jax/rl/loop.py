"""`gram-jax rl`: sample, judge, learn, again; with checkpoints from which a run goes on exactly.

A step samples `group` responses to each of `prompts` prompts, takes their rewards from the judge, and updates the
weights `epochs` times over `minibatches` parts. Everything random follows from (seed, step). The frozen reference is
the model that the run began with.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.checkpoint.manifest import write_manifest
from gram_jax.checkpoint.orbax import Checkpoints
from gram_jax.console import Console
from gram_jax.distributed.preemption import STATUS, StopRequest
from gram_jax.distributed.process import ProcessContext
from gram_jax.errors import CheckpointError, DataError, NonFiniteError, RecipeError, StoppedError
from gram_jax.formatting import format_value
from gram_jax.generation.generator import TextGenerator
from gram_jax.interop.hf_config import config_to_hf
from gram_jax.interop.hf_files import GENERATION
from gram_jax.interop.models import load_model
from gram_jax.interop.resolve import pin_step
from gram_jax.judge.messages import Prompt
from gram_jax.model.execution import Execution
from gram_jax.model.generate import SamplingConfig
from gram_jax.model.specs import ParamSpec, param_specs
from gram_jax.recipes.reading import changed_on_resume, read_rl_recipe, recipe_to_toml
from gram_jax.recipes.rl import RlRecipe
from gram_jax.rewards.forms import RewardForm
from gram_jax.rl.advantages import steered_weight
from gram_jax.rl.judged import RewardFunction, against_the_start, checked, judged_reward
from gram_jax.rl.objective import VALUE, RolloutBatch, make_views, rollout_objective
from gram_jax.rl.prompts import Prompts, read_prompts
from gram_jax.rl.rollout import make_rollout
from gram_jax.run.metrics import MetricsWriter, truncate
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import Placement, make_placement
from gram_jax.training.optimizer import make_optimizer, make_schedule
from gram_jax.training.state import TrainState, abstract_state, init_state, shardings_of
from gram_jax.training.step import make_train_step
from gram_jax.tree import Tree

CHUNK = 2048  # rows of logits at once
WIDTH = 64  # rows are a multiple of so many columns long


class _Saved(NamedTuple):
    """A TrainState as it is saved: the policy's weights alone under params, so that the run is a model by its name."""

    step: Any
    params: Any
    value: Any
    opt_state: Any
    skipped: Any
    in_a_row: Any


@dataclass(frozen=True)
class RlResult:
    """folder: of the run, also the name of its model; steps: done; metrics: the newest of each."""

    folder: Path
    steps: int
    metrics: dict[str, float]


def run_rl(
    recipe: RlRecipe,
    *,
    console: Console | None = None,
    placement: Placement | None = None,
    reward: RewardFunction | None = None,
) -> RlResult:
    """Carry out a recipe, or go on with the run in its folder.

    reward: in place of the recipe's judge; for win rates it is asked for the policy's and for the start's greedy
    responses, the latter in its third argument both times.

    Raises RecipeError and DataError for what cannot be used, StoppedError after
    Ctrl-C or SIGTERM (the state is kept).
    """
    return _Learner(recipe, console or Console(), placement, reward).run()


class _Learner:
    def __init__(
        self,
        recipe: RlRecipe,
        console: Console,
        placement: Placement | None,
        reward: RewardFunction | None,
    ):
        self.recipe, self.console = recipe, console
        self.folder = Path(recipe.run.output_dir).expanduser()
        _open(self.folder, recipe)
        self.place, judges = (placement, placement) if placement else _placements(recipe)
        _check_parts(recipe, self.place)
        self.start = _pinned_start(self.folder, recipe.policy.name_or_path)
        self.policy = self._load_policy()
        self.reference, self.cfg = self.policy.params, self.policy.cfg
        sampling = recipe.sampling
        self.width = -(-(sampling.max_prompt_length + sampling.max_new_tokens) // WIDTH) * WIDTH
        self.prompts = self._read(recipe.data.train)
        self.valid = self._read(recipe.data.valid) if recipe.data.valid else self.prompts
        self.judged = reward is None
        if reward is None:
            compute = recipe.execution.compute_dtype
            judge = Scorer.load(recipe.reward.judge, compute=compute, placement=judges)
            self.reward = judged_reward(judge, _form(recipe), _preferred(recipe, self.prompts))
            self.contest = judged_reward(judge, RewardForm("reference"))
        else:
            self.reward = self.contest = reward
        self._make_programs()

    def _load_policy(self) -> TextGenerator:
        recipe = self.recipe
        with self.console.timed("load the policy"):
            loaded = TextGenerator.load(
                self.start,
                compute=recipe.execution.compute_dtype,
                placement=self.place,
                system=recipe.policy.system,
            )
        execution = Execution(
            recipe.execution.compute_dtype,
            recipe.execution.attention,
            recipe.execution.remat,
            self.place,
            packed=False,
        )
        return replace(loaded, execution=execution)

    def _read(self, source: str) -> Prompts:
        found = read_prompts(
            source,
            self.policy,
            schema=self.recipe.data.schema,
            longest=self.recipe.sampling.max_prompt_length,
            limit=self.recipe.data.limit,
            console=self.console,
        )
        new = self.recipe.sampling.max_new_tokens
        _check_room(found, self.cfg.context_length - new, new)
        return found

    def _make_programs(self) -> None:
        """Of the update, and of the views (log-probabilities, values) that a rollout needs."""
        recipe, algorithm = self.recipe, self.recipe.algorithm
        specs = dict(param_specs(self.cfg))
        if algorithm.kind == "ppo":
            specs[VALUE] = ParamSpec((self.cfg.embed_size,), ("act_embed",), "zeros")
        steps = recipe.run.max_steps * recipe.updates
        self.optimizer = make_optimizer(recipe.optimizer, steps, specs)
        self.abstract = abstract_state(specs, self.optimizer, self.place, recipe.policy.param_dtype)
        options = {"temperature": recipe.sampling.temperature, "chunk": CHUNK}
        execution = self.policy.execution
        self.views = make_views(self.cfg, execution, **options)
        objective = rollout_objective(
            self.cfg,
            execution,
            **options,
            clip_range=algorithm.clip_range,
            kl_coef=algorithm.kl_coef if algorithm.kind == "grpo" else 0.0,
            vf_coef=algorithm.vf_coef,
            clip_range_vf=algorithm.clip_range_vf,
            ent_coef=algorithm.ent_coef,
        )
        self.update = make_train_step(
            objective,
            self.optimizer,
            make_schedule(recipe.optimizer, steps),
            shardings_of(self.abstract),
            self.place,
            microbatches=algorithm.gradient_accumulation_steps,
            max_skipped=0,
        )

    def run(self) -> RlResult:
        """All steps that are not done yet."""
        recipe, saves = self.recipe, self.recipe.checkpoint
        self._write_model()
        with (
            StopRequest(ProcessContext()) as stop,
            Checkpoints(
                self.folder / "checkpoints", keep=saves.max_to_keep, keep_every=saves.keep_period
            ) as checkpoints,
        ):
            newest = checkpoints.newest_good(self.console.warn)
            state = self._first(checkpoints, newest)
            done = int(state.step) // recipe.updates
            writer = MetricsWriter(self.folder, truncate(self.folder, done))
            stop.begin()
            try:
                with self.console.progress(
                    recipe.run.max_steps, done=done, label="rl", unit="tokens"
                ) as progress:
                    while done < recipe.run.max_steps:
                        state, values = self._step(state, done, self._kl_weight(writer, done))
                        done += 1
                        writer.write(done, values)
                        shown = {name: values[name] for name in ("reward", "kl")}
                        progress.update(1, units=values["num_tokens"], values=shown)
                        every = recipe.evaluate.eval_steps
                        if done == recipe.run.max_steps or (every and done % every == 0):
                            won = self._win_rate(state.params)
                            writer.write(done, won)
                            text = ", ".join(f"{k} {format_value(v)}" for k, v in won.items())
                            self.console.say(f"after step {done}: {text}")
                        last = done == recipe.run.max_steps or stop.name is not None
                        if last or (saves.save_steps and done % saves.save_steps == 0):
                            checkpoints.save(done, _to_saved(state), blocking=last)
                        if stop.name is not None and done < recipe.run.max_steps:
                            raise StoppedError(
                                f"stopped by {stop.name}: step {done} of {recipe.run.max_steps} is saved. The same "
                                "command resumes",
                                STATUS[stop.name],
                            )
            finally:
                writer.close()
        (self.folder / "run.json").write_text(
            json.dumps({"stage": "rl", "steps": done, "finished": True}) + "\n", encoding="utf-8"
        )
        newest_of = {k: v for row in writer.rows for k, v in row.items() if k != "step"}
        return RlResult(self.folder, done, newest_of)

    def _kl_weight(self, writer: MetricsWriter, done: int) -> float:
        """Of the divergence in the next step: it follows from the figures of the last one, so it goes on exactly."""
        algorithm = self.recipe.algorithm
        if algorithm.kl_target is None or not done:
            return algorithm.kl_coef
        weight, apart = writer.last("kl_weight"), writer.last("kl")
        if weight is None or apart is None:
            raise CheckpointError(
                f"{writer.path} has no kl_weight and kl of step {done}, from which kl_target goes on: expected the "
                "figures that the run wrote; bring the file back, or begin again in another run.output_dir"
            )
        return steered_weight(weight, apart, algorithm.kl_target)

    def _step(
        self, state: TrainState, number: int, kl_weight: float
    ) -> tuple[TrainState, dict[str, float]]:
        recipe, sampling = self.recipe, self.recipe.sampling
        chosen = self.prompts.draw(sampling.prompts_per_step, number, recipe.run.seed)
        once = [self.prompts.prompts[at] for at in chosen]
        asked = [prompt for prompt in once for _ in range(sampling.num_generations)]
        tokens = [self.prompts.tokens[at] for at in chosen]
        policy = self.policy.with_params(_weights(state.params))
        written = policy.generate_from_tokens(
            [ids for ids in tokens for _ in range(sampling.num_generations)],
            SamplingConfig(
                sampling.max_new_tokens, sampling.temperature, seed=_seed(recipe.run.seed, number)
            ),
            batch_size=recipe.rows,
        )
        greedy = None
        if recipe.reward.compare_with == "greedy":
            plain = policy.generate_from_tokens(
                tokens, SamplingConfig(sampling.max_new_tokens, 0)
            ).texts
            greedy = [text for text in plain for _ in range(sampling.num_generations)]
        rewards = checked(self.reward(asked, written.texts, greedy), recipe.rows)
        batch, figures = make_rollout(
            replace(recipe.algorithm, kl_coef=kl_weight),
            tokens,
            written.samples,
            rewards,
            width=self.width,
            policy=partial(self.views, state.params),
            start=partial(self.views, self.reference),
            place=self.place,
        )
        sums: dict[str, list[float]] = {}
        for part in self._parts(batch, number):
            state, metrics = self.update(state, {}, part)
            for name, (total, count) in jax.device_get(metrics).items():
                sums.setdefault(name, []).append(float(total) / max(float(count), 1.0))
        means = {name: float(np.mean(values)) for name, values in sums.items()}
        if means.pop("bad"):
            raise NonFiniteError(
                f"step {number + 1}: the loss or its gradient is not finite; the last checkpoint is good"
            )
        return state, means | figures | {"kl_weight": kl_weight}

    def _parts(self, batch: RolloutBatch, number: int) -> Iterator[RolloutBatch]:
        """The minibatches of all epochs, drawn by (seed, step)."""
        algorithm = self.recipe.algorithm
        draw = np.random.default_rng([self.recipe.run.seed, number, 1])
        for _ in range(algorithm.num_epochs):
            order = draw.permutation(self.recipe.rows)
            for members in np.split(order, algorithm.num_mini_batches):
                yield jax.tree.map(partial(self._take, at=np.sort(members)), batch)

    def _take(self, x: jax.Array, at: np.ndarray) -> jax.Array:
        return self.place.constrain(jnp.asarray(x)[at], "batch", *(None for _ in x.shape[1:]))

    def _win_rate(self, params: Tree) -> dict[str, float]:
        """Against what the start writes, greedy against greedy, on held-out prompts."""
        limit, greedy = (
            self.recipe.evaluate.limit,
            SamplingConfig(self.recipe.sampling.max_new_tokens, 0),
        )
        prompts, tokens = self.valid.prompts[:limit], self.valid.tokens[:limit]
        policy = self.policy.with_params(_weights(params))
        ours = policy.generate_from_tokens(tokens, greedy).texts
        theirs = self.policy.generate_from_tokens(tokens, greedy).texts
        won, gain = against_the_start(self.contest, prompts, ours, theirs)
        if self.judged:  # where a response equal to the start's has 0.5
            return {"win_rate": won, "p_better_than_start": 0.5 + gain}
        return {"win_rate": won, "gain_over_start": gain}

    def _first(self, checkpoints: Checkpoints, newest: int | None) -> TrainState:
        if newest is not None:
            return _from_saved(checkpoints.restore(newest, _to_saved(self.abstract)))
        dtype = self.recipe.policy.param_dtype
        params = dict(load_model(self.start, self.place, dtype)[1])
        if VALUE in self.abstract.params:
            shape = self.abstract.params[VALUE]
            params[VALUE] = jax.device_put(jnp.zeros(shape.shape, shape.dtype), shape.sharding)
        return init_state(params, self.optimizer, self.abstract)

    def _write_model(self) -> None:
        model = self.folder / "model"
        model.mkdir(exist_ok=True)
        text = json.dumps(config_to_hf(self.cfg, self.recipe.policy.param_dtype), indent=2) + "\n"
        (model / "config.json").write_text(text, encoding="utf-8")
        self.policy.tokenizer.save_pretrained(model)
        ends = json.dumps({"eos_token_id": list(self.policy.stop_token_ids)}) + "\n"
        (model / GENERATION).write_text(ends, encoding="utf-8")
        write_manifest(model)


def _check_parts(recipe: RlRecipe, place: Placement) -> None:
    unit = recipe.algorithm.num_mini_batches * recipe.algorithm.gradient_accumulation_steps
    if recipe.rows % (unit * place.batch_shards):
        raise RecipeError(
            f"{recipe.rows} responses a step are not a multiple of {unit} parts x {place.batch_shards} batch "
            "shards: change [sampling] prompts or group, or [algorithm] minibatches or microbatches"
        )


def _placements(recipe: RlRecipe) -> tuple[Placement, Placement]:
    """The policy's and the judge's: one mesh, or the last devices for the judge, a part of its batch on each."""
    devices, apart = jax.devices(), recipe.reward.num_devices
    if apart >= len(devices):
        raise RecipeError(
            f"[reward] devices = {apart} leaves none of the {len(devices)} devices to the policy: expected less"
        )
    sizes, dcn = recipe.mesh.sizes, recipe.mesh.dcn_sizes
    policy = make_placement(sizes, dcn=dcn, devices=devices[: len(devices) - apart])
    if not apart:
        return policy, policy
    return policy, make_placement({"data": -1}, devices=devices[-apart:])


def _form(recipe: RlRecipe) -> RewardForm:
    asked = recipe.reward
    against = "reference" if asked.compare_with == "greedy" else asked.compare_with
    return RewardForm(against, asked.scale, asked.references, asked.length_penalty)


def _preferred(recipe: RlRecipe, prompts: Prompts) -> dict[Prompt, str] | None:
    """The data's preferred responses, where responses are compared with these. Raises DataError where there is none."""
    if recipe.reward.compare_with != "reference" or recipe.reward.references:
        return None
    if lacking := sum(prompt not in prompts.preferred for prompt in prompts.prompts):
        raise DataError(
            f'[reward] compare_with = "reference" without references takes the preferred responses of '
            f"{recipe.data.train}: {lacking} of its {len(prompts.prompts)} prompts have none: "
            "give references, or a source of preferences"
        )
    return prompts.preferred


def _check_room(prompts: Prompts, room: int, new: int) -> None:
    """Raises RecipeError for a prompt that leaves the model no room to answer: now, and not when it is drawn."""
    if (longest := max(map(len, prompts.tokens))) > room:
        raise RecipeError(
            f"a prompt has {longest} tokens and there is room for {max(0, room)} beside {new} new ones in the model's "
            "context: lower [sampling] max_prompt_length, which drops longer ones, or [sampling] max_new_tokens"
        )


def _open(folder: Path, recipe: RlRecipe) -> None:
    """Make the run's folder, or check that what is there is this run."""
    path = folder / "recipe.toml"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if any(folder.iterdir()):
            raise RecipeError(
                f"{folder} holds something that is no run: give another run.output_dir"
            )
        path.write_text(recipe_to_toml(recipe), encoding="utf-8")
        return
    if changed := changed_on_resume(read_rl_recipe(path), recipe):
        lines = "\n  ".join(changed)
        raise RecipeError(
            f"{folder} holds a run of another recipe:\n  {lines}\nGive another run.output_dir"
        )
    path.write_text(recipe_to_toml(recipe), encoding="utf-8")


def _pinned_start(folder: Path, start: str) -> str:
    """The start as it was when the run began: another run's newest checkpoint may be a later one by now."""
    path = folder / "start.json"
    if not path.exists():
        path.write_text(json.dumps({"start": pin_step(start)}) + "\n", encoding="utf-8")
    return str(json.loads(path.read_text(encoding="utf-8"))["start"])


def _weights(params: Tree) -> Tree:
    """The policy's own, without the critic's head."""
    return {name: leaf for name, leaf in params.items() if name != VALUE}


def _to_saved(state: TrainState) -> _Saved:
    value = {VALUE: state.params[VALUE]} if VALUE in state.params else {}
    rest = state._replace(params=_weights(state.params))
    return _Saved(rest.step, rest.params, value, rest.opt_state, rest.skipped, rest.in_a_row)


def _from_saved(saved: _Saved) -> TrainState:
    params = {**saved.params, **(saved.value or {})}
    return TrainState(saved.step, params, saved.opt_state, saved.skipped, saved.in_a_row)


def _seed(*numbers: int) -> int:
    """One number for the sampler from several."""
    return int(np.random.default_rng(list(numbers)).integers(2**31))
