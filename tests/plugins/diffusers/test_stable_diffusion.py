"""The backbone on tiny pipelines: what it loads, draws and writes. The step is in tests/integration."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch.testing import assert_close

from alignkit import Key
from alignkit.noise import noised, normal
from alignkit.policy import LoRA
from alignkit.testing.pipelines import tiny_stable_diffusion, tiny_stable_diffusion_xl
from alignkit.testing.toys import toy_batch
from alignkit.trust import trusting
from alignkit_diffusers.stable_diffusion import StableDiffusion
from alignkit_diffusion_dpo.functional import diffusion_dpo_loss


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stable_diffusion(tmp_path_factory.mktemp("pipeline"))


def test_pictures_are_those_of_diffusers_own_pipeline(folder: Path) -> None:
    """Same seeds, DDIM, same guidance: nothing of ours stands between."""
    backbone = StableDiffusion(str(folder))
    network = backbone.build_policy().eval()
    prompts, seeds = ["red apple", "green pear"], [4, 5]
    latent_NCHW = backbone.generate(network, prompts, seeds=seeds, num_steps=3, guidance=2.0)
    ours = backbone.decode(latent_NCHW)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompts,
        num_inference_steps=3,
        guidance_scale=2.0,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="pt",
    ).images
    assert_close(ours, theirs)
    alone = backbone.generate(network, prompts[1:], seeds=seeds[1:], num_steps=3, guidance=2.0)
    assert_close(alone[0], latent_NCHW[1], rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def zero_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A schedule that ends in pure noise."""
    return tiny_stable_diffusion(tmp_path_factory.mktemp("zero"), "v_prediction", zero_snr=True)


def test_a_schedule_that_ends_in_noise_has_finite_targets_and_gradients_at_every_step(
    zero_folder: Path,
) -> None:
    """At the last step x = noise and v = -latent."""
    backbone = StableDiffusion(str(zero_folder), caption_dropout=0.0)
    alpha_T, sigma_T = backbone.schedule
    assert alpha_T[-1] == 0
    assert sigma_T[-1] == 1
    steps = torch.tensor([0, 500, 998, 999])
    batch = toy_batch(len(steps))
    key = Key(0, batch.id_B, batch.visit_B)
    encoded = backbone.encode(batch, key=key)
    sample = noised(
        encoded.latent_KBCHW, steps, schedule=backbone.schedule, prediction_type="v_prediction", key=key
    )
    noise_KBCHW = normal(key, "noise", (4, 8, 8)).expand_as(sample.x_KBCHW)
    assert torch.equal(sample.x_KBCHW[:, -1], noise_KBCHW[:, -1])
    assert torch.equal(sample.target_KBCHW[:, -1], -encoded.latent_KBCHW[:, -1])
    policy = backbone.build_policy()
    logp_KB = sample.logp(backbone.predict(policy, sample.x_KBCHW, sample.t_KB, encoded))
    diffusion_dpo_loss(logp_KB, logp_KB.detach(), beta=5000.0).sum().backward()
    assert logp_KB.isfinite().all()
    gradients = [parameter.grad for parameter in policy.parameters()]
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


def test_pictures_of_a_schedule_that_ends_in_noise_start_there(zero_folder: Path) -> None:
    """Diffusers' own pipeline, with its trailing steps: 999, 666, 332 of three."""
    backbone = StableDiffusion(str(zero_folder))
    network = backbone.build_policy().eval()
    told: list[int] = []
    hook = network.register_forward_pre_hook(lambda module, given: told.append(int(given[1])))
    latent_NCHW = backbone.generate(network, ["red apple"], seeds=[4], num_steps=3, guidance=2.0)
    hook.remove()
    assert told == [999, 666, 332]
    pipeline = StableDiffusionPipeline.from_pretrained(zero_folder)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "pt"}
    theirs = pipeline("red apple", generator=torch.Generator().manual_seed(4), **options).images
    assert_close(backbone.decode(latent_NCHW), theirs)


def test_noise_cannot_be_predicted_on_a_schedule_that_ends_in_noise(tmp_path: Path) -> None:
    path = tiny_stable_diffusion(tmp_path, "epsilon", zero_snr=True)
    with pytest.raises(ValueError, match=r"ends in pure noise .* needs prediction_type 'v_prediction'$"):
        StableDiffusion(str(path))


def test_decode_is_the_pipelines_own_in_zero_to_one(folder: Path) -> None:
    latent_NCHW = torch.randn(2, 4, 8, 8)
    image_NCHW = StableDiffusion(str(folder)).decode(latent_NCHW)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    with torch.no_grad():
        theirs = pipeline.vae.decode(latent_NCHW / pipeline.vae.config.scaling_factor).sample
    assert_close(image_NCHW, pipeline.image_processor.postprocess(theirs, output_type="pt"))
    assert 0 <= image_NCHW.min() < image_NCHW.max() <= 1


def test_merged_adapters_predict_what_the_adapted_policy_predicted(folder: Path, tmp_path: Path) -> None:
    """The alpha differs from the rank: a file without its metadata would scale the adapters wrongly."""
    backbone = StableDiffusion(str(folder), lora=LoRA(rank=2, alpha=8.0))
    policy = backbone.build_policy().eval()
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    backbone.save(policy, tmp_path)
    x_NCHW, t_N, text_NLD = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 16, 16)
    adapted = policy(x_NCHW, t_N, encoder_hidden_states=text_NLD).sample
    merged = backbone.load(tmp_path)(x_NCHW, t_N, encoder_hidden_states=text_NLD).sample
    assert_close(merged, adapted, rtol=1e-4, atol=1e-5)
    plain = StableDiffusion(str(folder)).build_policy()
    assert not torch.allclose(plain(x_NCHW, t_N, encoder_hidden_states=text_NLD).sample, adapted, atol=1e-2)
    plain.load_lora_adapter(tmp_path, prefix="unet", weight_name="pytorch_lora_weights.safetensors")
    loaded = plain(x_NCHW, t_N, encoder_hidden_states=text_NLD).sample
    assert_close(loaded, adapted, rtol=1e-4, atol=1e-5)


def test_only_the_asked_layers_are_trained(folder: Path) -> None:
    policy = StableDiffusion(str(folder), lora=LoRA(rank=2, targets=("to_v",))).build_policy()
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("to_v.lora_" in name for name in trained)


def test_trainable_weights_are_float32_however_they_are_stored(folder: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float16)
    pipeline.save_pretrained(tmp_path)
    policy = StableDiffusion(str(tmp_path)).build_policy()
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}


def test_schedule_is_the_checkpoints_own(folder: Path) -> None:
    schedule = StableDiffusion(str(folder)).schedule
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    assert_close(schedule.alpha_T**2, scheduler.alphas_cumprod)
    assert_close(schedule.alpha_T**2 + schedule.sigma_T**2, torch.ones(1000))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere/at/all", "is no pipeline folder"),
        ("no_such_package:base", "no package 'no_such_package' is installed"),
        ("alignkit_emoji:nothing", "is no pipeline folder"),
    ],
)
def test_a_path_that_holds_no_pipeline_is_named(path: str, message: str) -> None:
    with trusting(["no_such_package"]), pytest.raises(ValueError, match=message):
        StableDiffusion(path)


def test_a_missing_part_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text((folder / "model_index.json").read_text())
    with pytest.raises(ValueError, match="cannot load the vae of"):
        StableDiffusion(str(tmp_path))


def test_a_pipeline_of_two_text_encoders_is_refused(tmp_path: Path) -> None:
    path = tiny_stable_diffusion_xl(tmp_path)
    with pytest.raises(ValueError, match="with two text encoders; use the backbone StableDiffusionXL"):
        StableDiffusion(str(path))
