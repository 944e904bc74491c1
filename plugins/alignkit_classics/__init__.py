"""The known alternatives to Diffusion-DPO: SFT, hinge, conservative and robust DPO, IPO, KTO and MaPO."""

from collections.abc import Iterable, Mapping

from alignkit.hookspecs import Paper, hookimpl


@hookimpl
def alignkit_objectives() -> Mapping[str, str]:
    return {
        "SFT": "alignkit_classics.reference_free:SFT",
        "MaPO": "alignkit_classics.reference_free:MaPO",
        "HingeDPO": "alignkit_classics.pairwise:HingeDPO",
        "ConservativeDPO": "alignkit_classics.noisy_labels:ConservativeDPO",
        "RobustDPO": "alignkit_classics.noisy_labels:RobustDPO",
        "IPO": "alignkit_classics.pairwise:IPO",
        "KTO": "alignkit_classics.kto:KTO",
        "UnpairedKTO": "alignkit_classics.kto:UnpairedKTO",
    }


@hookimpl
def alignkit_papers() -> Iterable[Paper]:
    return [
        Paper(
            title="Denoising Diffusion Probabilistic Models",
            authors="Ho et al.",
            year=2020,
            url="https://arxiv.org/abs/2006.11239",
            components=("SFT",),
            configs=("sft.yaml", "sft/sd15_pickapic.yaml", "sft/sdxl_pickapic.yaml"),
            deviations=("Only the winner of each pair is shown.",),
        ),
        Paper(
            title="SLiC-HF: Sequence Likelihood Calibration with Human Feedback",
            authors="Zhao et al.",
            year=2023,
            url="https://arxiv.org/abs/2305.10425",
            components=("HingeDPO",),
            configs=("hinge_dpo.yaml",),
            deviations=(
                "Log-likelihoods are taken against a reference, as in RSO (Liu et al., 2023, "
                "https://arxiv.org/abs/2309.06657); there is no calibration to SFT targets.",
                "On the logit of Diffusion-DPO; the papers train language models.",
            ),
        ),
        Paper(
            title="A note on DPO with noisy preferences and relationship to IPO",
            authors="Mitchell",
            year=2023,
            url="https://ericmitchell.ai/cdpo.pdf",
            components=("ConservativeDPO",),
            configs=("conservative_dpo.yaml",),
            deviations=("On the logit of Diffusion-DPO; the note is about language models.",),
        ),
        Paper(
            title="Provably Robust DPO: Aligning Language Models with Noisy Feedback",
            authors="Chowdhury et al.",
            year=2024,
            url="https://arxiv.org/abs/2403.00409",
            components=("RobustDPO",),
            configs=("robust_dpo.yaml", "robust_dpo/sd15_pickapic.yaml", "robust_dpo/sdxl_pickapic.yaml"),
            deviations=("On the logit of Diffusion-DPO; the paper trains language models.",),
        ),
        Paper(
            title="A General Theoretical Paradigm to Understand Learning from Human Preferences",
            authors="Azar et al.",
            year=2023,
            url="https://arxiv.org/abs/2310.12036",
            components=("IPO",),
            configs=("ipo.yaml", "ipo/sd15_pickapic.yaml", "ipo/sdxl_pickapic.yaml"),
            deviations=(
                "Gains are differences of squared errors, means over C, H, W, at one noised point; the paper "
                "has no diffusion models.",
            ),
        ),
        Paper(
            title="KTO: Model Alignment as Prospect Theoretic Optimization",
            authors="Ethayarajh et al.",
            year=2024,
            url="https://arxiv.org/abs/2402.01306",
            components=("KTO", "UnpairedKTO"),
            configs=("kto.yaml",),
            deviations=(
                "The reference point is that of Diffusion-KTO, the mean gain of the batch; the paper takes "
                "mismatched prompts and answers.",
            ),
        ),
        Paper(
            title="Aligning Diffusion Models by Optimizing Human Utility",
            authors="Li et al.",
            year=2024,
            url="https://arxiv.org/abs/2404.04465",
            components=("KTO", "UnpairedKTO"),
            configs=("kto.yaml", "kto/sd15_pickapic.yaml", "kto/sdxl_pickapic.yaml"),
            deviations=(
                "Of the utilities of the authors' code only the sigmoid, which it runs by default, is here.",
                "Likes and dislikes are drawn equally often and weighted; the authors' code draws likes with "
                "a probability of 0.8.",
                "KTO sees both images of a pair at one noised point each; UnpairedKTO, like the paper, one.",
                "A negative reference point is 0 in the mean over all processes, as in the authors' code.",
            ),
        ),
        Paper(
            title="Margin-aware Preference Optimization for Aligning Diffusion Models without Reference",
            authors="Hong et al.",
            year=2024,
            url="https://arxiv.org/abs/2406.06424",
            components=("MaPO",),
            configs=("mapo.yaml", "mapo/sd15_pickapic.yaml", "mapo/sdxl_pickapic.yaml"),
            deviations=(
                "The equation is that of the authors' code; the paper itself was read in its abstract only.",
            ),
        ),
    ]
