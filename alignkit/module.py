"""The one LightningModule. Shape suffixes: K candidates of a prompt, best first; B prompts; C H W."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from alignkit import rules
from alignkit.averages import Snapshots
from alignkit.compiling import Compile, Compiled
from alignkit.components import (
    Backbone,
    Component,
    Conditioner,
    Denoiser,
    Objective,
    Reference,
    Sampler,
    Weighting,
)
from alignkit.data import AlignData
from alignkit.data.bank.checking import TOLERANCE, BankCheck
from alignkit.data.cache.store import Cache
from alignkit.devices import sent
from alignkit.distributed import averaged
from alignkit.policy import BoundDenoiser, ReferenceDenoiser, has_adapters, own_reference
from alignkit.resuming import Resuming
from alignkit.rules import Combination
from alignkit.sharding import check_optimizer, is_sharded, shard, whole
from alignkit.strategies import check_strategy
from alignkit.types import Batch, Encoded, Key, Loss, Sample, Scored, Weights, mean_logs

FITTING = {"bfloat16": "bf16-mixed", "float16": "16-mixed"}


class AlignModule(pl.LightningModule):
    """Trains a policy against a reference on the candidates of prompts.

    Args:
        objective: the loss.
        sampler: which points the networks are asked about.
        backbone: the model.
        optimizer: built from the policy's trainable weights.
        weighting: how much each prompt counts; all the same without it.
        conditioner: what the policy is told besides the prompt; then that alone is trained.
        reference: against whom; without it, the policy with its adapters or its conditioner off if it has
            one, else a frozen copy.
        warmup_steps: optimizer steps over which the learning rate rises linearly to its full value.
        seed: seed of every draw.
        compile: how policy and reference are compiled; not at all without it.

    Attributes:
        compiled: gives networks as they are to be run, compiled or not.
        resuming: what checkpoints hold to go on from; may be replaced until a run begins.

    Raises:
        ValueError: the parts do not go together: see ``alignkit.rules``.
    """

    def __init__(
        self,
        objective: Objective,
        sampler: Sampler,
        backbone: Backbone,
        optimizer: OptimizerCallable,
        weighting: Weighting | None = None,
        conditioner: Conditioner | None = None,
        reference: Reference | None = None,
        warmup_steps: int = 0,
        seed: int = 0,
        compile: Compile | None = None,
    ) -> None:
        super().__init__()
        if warmup_steps < 0:
            raise ValueError(f"AlignModule: warmup_steps must be at least 0, got {warmup_steps}")
        self.objective, self.sampler, self.weighting = objective, sampler, weighting
        self.backbone, self.conditioner, self.reference = backbone, conditioner, reference
        self.optimizer, self.warmup_steps, self.seed = optimizer, warmup_steps, seed
        self.policy: nn.Module | None = None
        self.lr_factor = 1.0
        # what guards see and say: see ``alignkit.guards``
        self.lr_scale = 1.0
        self.seen: dict[str, Tensor] = {}
        self.grad_norm: Tensor | None = None
        self.skipped: Tensor | None = None
        self.outcome: dict[str, Any] = {}
        self._snapshots = Snapshots(weighting.snapshots) if weighting and weighting.snapshots else None
        self.compiled = Compiled(compile)
        self._start_checked = False
        self._bank_check = BankCheck()
        self.resuming = Resuming()
        rules.check(self._parts())

    def setup(self, stage: str) -> None:
        """Refuses a trainer that does not go with its parts, and takes what the data's cache says of prompts.

        Raises:
            ValueError: it breaks a rule, its strategy shards nothing, or what CUDA graphs run, or the cache
                is of other encoders.
        """
        data = getattr(self.trainer, "datamodule", None)
        cache, bank = (data.opened_cache, data.opened_bank) if isinstance(data, AlignData) else (None, None)
        precision, how = str(self.trainer.precision), self.compiled.how
        rules.check(self._parts()._replace(precision=precision, compile=how, banked=bank is not None))
        check_strategy(self.trainer.strategy, graphs=self.compiled.has_graphs)
        if cache is not None:
            self.read_from(cache)

    def read_from(self, cache: Cache) -> None:
        """Takes what a cache says of prompts.

        Raises:
            ValueError: it is of other encoders.
        """
        cache.check_encoders(self.backbone.encoder_hashes())
        self.backbone.texts = cache.texts

    def configure_model(self) -> None:
        """Loads the policy, and the reference if the objective looks at it; shards both if the run does."""
        if self.policy is not None:
            return
        self.policy = self._built()
        if "ref_logp" in self.objective.uses:
            adapters, told = has_adapters(self.policy), self.conditioner is not None
            self.reference = self.reference or own_reference(lora=adapters, conditioner=told)()
            self.reference.attach(self.backbone, self.policy)
        else:
            self.reference = None
        if self.device_mesh is not None:
            self._shard(self.policy, self.device_mesh["data_parallel"])

    def configure_callbacks(self) -> list[pl.Callback]:
        parts = (self.objective, self.sampler, self.weighting, self.conditioner)
        own = [callback for part in parts if isinstance(part, Component) for callback in part.callbacks()]
        # last: it compares the reference that those before it put in its place
        return [*own, *([self._snapshots] if self._snapshots else []), self._bank_check, self.resuming]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        key = batch.key(self.seed)
        encoded = self._encode(batch, key)
        policy, reference = self._denoisers(encoded)
        sample = self.sampler(batch, encoded, policy, reference, key=key)
        scored = self._score(sample, policy, reference, encoded, batch.ref_logp_KB)
        weights = self._weigh(scored, batch)
        loss = self.loss(scored._replace(margin_B=weights.margin_B), batch)
        trained = (weights.weight_B * loss.loss_B).mean()
        self._report(scored, loss, weights, trained)
        return trained

    @torch.no_grad()
    def score_reference(self, batch: Batch) -> Scored:
        """What the reference says of a batch, of a policy that still is the reference."""
        key = batch.key(self.seed)
        encoded = self._encode(batch, key)
        policy, reference = self._denoisers(encoded)
        assert reference is not None
        sample = self.sampler(batch, encoded, policy, reference, key=key)
        logp_KB = sample.logp(reference(sample.x_KBCHW, sample.t_KB))
        return Scored(sample, logp_KB, logp_KB, step=self.global_step)

    def loss(self, scored: Scored, batch: Batch) -> Loss:
        """The objective's loss; of a pair with a soft label, its expectation over the label."""
        loss: Loss = self.objective(scored, batch)
        if batch.label_B is None or self.objective.reads != "pair":
            return loss
        mirrored: Loss = self.objective(_mirrored(scored), batch)
        loss_B = batch.label_B * loss.loss_B + (1 - batch.label_B) * mirrored.loss_B
        return loss._replace(loss_B=loss_B)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer([p for p in self._trained().parameters() if p.requires_grad])
        if is_sharded(self._trained()):
            check_optimizer(optimizer)
        ramp = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: self.lr_scale * self.lr_factor * min(1.0, (step + 1) / (self.warmup_steps or 1)),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": ramp, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by the norm that a guard has computed, if one has."""
        norm, self.grad_norm = self.grad_norm, None
        if norm is None or not gradient_clip_val or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        weights = self.trainer.precision_plugin.main_params(optimizer)
        torch.nn.utils.clip_grads_with_norm_(weights, gradient_clip_val, norm)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Updates, and frees gradients at once: Lightning would keep them until the next backward pass."""
        optimizer.step(closure=optimizer_closure)
        if not self.compiled.has_graphs:  # which need them where they are
            optimizer.zero_grad()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Clears gradients, as compiled networks need it."""
        self.compiled.zero_grad(optimizer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what is trained."""
        assert self.policy is not None
        frozen = {f"policy.{name}" for name, p in self.policy.named_parameters() if not p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts back what was not saved."""
        checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}

    def base_network(self) -> AbstractContextManager[nn.Module]:
        """What the policy started from, within a ``with`` block."""
        if self.reference is None or not self.reference.is_base or is_sharded(self._trained()):
            return nullcontext(self.backbone.build_policy().eval().to(self.device))
        return self.reference.network()

    def whole_policy(self, *, wanted: bool = True) -> nn.Module:
        """The policy, as one that runs without the other processes; every process must ask.

        Args:
            wanted: whether this process needs it.
        """
        return whole(self._trained(), self._built, wanted=wanted)

    @contextmanager
    def whole_reference(self) -> Iterator[nn.Module]:
        """The reference, as one that runs without the other processes; every process must ask."""
        assert self.reference is not None
        if is_sharded(self._trained()) and self.reference.is_base:
            with self.base_network() as network:
                yield network
            return
        with self.reference.network() as network:
            yield whole(network, lambda: self.backbone.build_reference(self._built()))

    def _trained(self) -> nn.Module:
        assert self.policy is not None
        return self.policy

    def _built(self) -> nn.Module:
        policy = self.backbone.build_policy()
        if self.conditioner is not None:
            self.conditioner.attach(policy)
        return policy

    def _shard(self, policy: nn.Module, mesh: DeviceMesh) -> None:
        if self.reference is not None:
            self.reference.fingerprint()  # which is known without the other processes until it is sharded
            with self.reference.network() as network:
                own = network is not policy
            if own:
                shard(network, mesh)
        shard(policy, mesh)

    def _parts(self) -> Combination:
        return Combination(
            self.objective,
            self.sampler,
            type(self.backbone),
            lora=self.backbone.lora,
            frozen_dtype=self.backbone.frozen_dtype,
            # the trainer's is known in ``setup``; until then, one that fits
            precision=FITTING.get(self.backbone.frozen_dtype, "32-true"),
            weighting=self.weighting,
            conditioner=type(self.conditioner) if self.conditioner else None,
            reference=type(self.reference) if self.reference else None,
        )

    def _encode(self, batch: Batch, key: Key) -> Encoded:
        encoded = self.backbone.encode(batch, key=key)
        if self.conditioner is None:
            return encoded
        tokens_BLD = sent(self.conditioner(batch, key=key), encoded.text_BLD.device)
        return encoded._replace(tokens_BLD=tokens_BLD)

    def _denoisers(self, encoded: Encoded) -> tuple[Denoiser, Denoiser | None]:
        """Policy and reference, asked about one batch."""
        assert self.policy is not None
        self.compiled.begin()
        policy = BoundDenoiser(self.backbone, self.compiled("policy", self.policy), encoded)
        if self.reference is None:
            return policy, None
        untold = encoded._replace(tokens_BLD=None)
        return policy, ReferenceDenoiser(self.backbone, self.reference, untold, self.compiled)

    def _score(
        self,
        sample: Sample,
        policy: Denoiser,
        reference: Denoiser | None,
        encoded: Encoded,
        ref_logp_KB: Tensor | None,
    ) -> Scored:
        """Log-likelihoods, only of what the objective and the weighting read; a bank may know some."""
        uses, x_KBCHW, t_KB = self.objective.uses, sample.x_KBCHW, sample.t_KB
        logp_KB = sample.logp(policy(x_KBCHW, t_KB)) if "logp" in uses else None
        if ref_logp_KB is None and reference is not None and "ref_logp" in uses:
            ref_logp_KB = sample.logp(reference(x_KBCHW, t_KB))
        scored = Scored(sample, logp_KB, ref_logp_KB, step=self.global_step)
        if self._snapshots is None:
            return scored
        assert self.policy is not None
        denoisers = [BoundDenoiser(self.backbone, n, encoded) for n in self._snapshots.networks(self.policy)]
        with torch.no_grad():
            snapshot_logp_SKB = torch.stack([sample.logp(denoiser(x_KBCHW, t_KB)) for denoiser in denoisers])
        return scored._replace(snapshot_logp_SKB=snapshot_logp_SKB)

    def _weigh(self, scored: Scored, batch: Batch) -> Weights:
        if self.weighting is None:
            return Weights(torch.ones_like(batch.id_B, dtype=torch.float32))
        with torch.no_grad():
            weights: Weights = self.weighting(scored, batch)
        return weights

    def _report(self, scored: Scored, loss: Loss, weights: Weights, trained: Tensor) -> None:
        count = len(loss.loss_B)
        logs = {"loss": loss.loss_B, **loss.logs, **weights.logs}
        for name, logp_KB in (("", scored.logp_KB), ("ref_", scored.ref_logp_KB)):
            if logp_KB is not None and len(logp_KB) == 2:
                logs |= {f"{name}winner_mse": -logp_KB[0], f"{name}loser_mse": -logp_KB[1]}
        if {"winner_mse", "ref_winner_mse"} <= logs.keys():
            logs["winner_mse_change"] = logs["winner_mse"] - logs["ref_winner_mse"]
            logs["loser_mse_change"] = logs["loser_mse"] - logs["ref_loser_mse"]
        means = mean_logs(logs)
        self.seen = {**means, "trained": trained.detach()}
        if not self.trainer.training:
            # times the processes: Lightning divides the count of all by their number, in whole numbers
            count *= self.trainer.world_size
            self.log_dict({f"val/{k}": v for k, v in means.items()}, batch_size=count, sync_dist=True)
            return
        if not self._start_checked:
            self._check_start(loss)
        if self._is_logged():  # only then: the processes wait for each other
            self.log_dict(averaged(means), batch_size=count)

    def _is_logged(self) -> bool:
        """Whether loggers write down the optimizer step that this batch is of."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and ((self.global_step + 1) % every == 0 or self.trainer.should_stop)

    def _check_start(self, loss: Loss) -> None:
        """Before the first step the policy is the reference: its margin is 0 and its loss is known.

        Raises:
            ValueError: they differ, so policy and reference do not run on the same numeric path.
        """
        self._start_checked = True
        expected = self.objective.initial_loss()
        if self.global_step or expected is None or self.weighting is not None:
            return
        name, margin = type(self.objective).__name__, float(loss.logs.get("rewards/margins", 0.0))
        found_B = loss.loss_B.detach()
        if not found_B.isfinite().all():  # of bad data; what then happens is up to the guards
            return
        # what the bank says was computed in other batches
        allowed = TOLERANCE if self._bank_check.is_done else 0.0
        expected_B = torch.full_like(found_B, expected)
        if abs(margin) > 2 * allowed or not torch.allclose(found_B, expected_B, rtol=1e-6, atol=allowed):
            raise ValueError(
                "first batch: policy and reference should be equal, but the margin is "
                f"{margin:.3g} (must be 0) and the loss of {name} {found_B.mean():.6f} "
                f"(must be {expected:.6f}). They must run in the same precision, "
                "with the same weights and without dropout; compiled, they may round differently: leave "
                "model.compile out then"
            )
        rank_zero_info(
            f"first batch: margin {margin:g}{'' if allowed else ' (exactly 0)'}, loss of {name} "
            f"{found_B.mean():.6f}, as it must be"
        )


def _mirrored(scored: Scored) -> Scored:
    """The same pair with the loser first."""
    logp_KB, ref_logp_KB = scored.logp_KB, scored.ref_logp_KB
    return scored._replace(
        logp_KB=None if logp_KB is None else logp_KB.flip(0),
        ref_logp_KB=None if ref_logp_KB is None else ref_logp_KB.flip(0),
    )
