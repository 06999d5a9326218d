"""The claims of docs/compatibility.md: what concepts are used with, each with its test or a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

NOT_TESTED = "not tested"
TAUGHT = "test_families.py::test_it_is_taught_saved_and_used"
COMBINED = "test_families.py::test_two_concepts_are_combined"
EXPORTED = "test_families.py::test_what_is_exported_is_the_static_edit"
PATCHES = "test_neighbours.py::test_beside_what_patches_the_model"
CONDITIONS = "test_neighbours.py::test_beside_what_changes_the_conditioning"
GUIDERS = "test_neighbours.py::test_beside_guiders_of_more_than_two_prompts_or_one_model"
FLAGS = "test_flags.py::test_on_a_server_with_flags"
FAMILIES = {
    "SD2.x": "sd2", "SDXL": "sdxl", "KOALA-700M": "koala", "Anima": "anima", "Wan 2.1, 2.2": "wan", "LTX-Video": "ltxv",
    "PixArt α, Σ": "pixart", "Cosmos-Predict2": "cosmos",
}  # fmt: skip
"""Name of a family -> its run in test_families.py."""
KINDS = (
    "Refused: *Perfusion needs a Stable Diffusion 1, 2 or XL, Wan, LTX-Video, PixArt, Cosmos-Predict2 or Anima model; this is "
    "a different kind of model.*"
)
JOINT = "Refused: *In this model (…), text and image are processed together by joint attention …*"
NO_LORA = "Refused: *ComfyUI has no LoRA format with separate keys and values for pixart_sigma models; choose embedding.*"


@dataclass(frozen=True)
class Tried:
    """A test, given by its id below tests/; an id without a part in brackets stands for all runs of a parametrized test."""

    id: str

    @property
    def path(self) -> str:
        """The test's id as an argument to pytest."""
        return f"tests/{self.id}"

    def runs(self, known: Iterable[str]) -> list[str]:
        """Return those of the full ids that belong to this test."""
        return [each for each in known if each == self.path or each.startswith(f"{self.path}[")]


Cell = Tried | str
"""A test, or a sentence instead of one."""


@dataclass(frozen=True)
class Table:
    """A section of the page. Each row has a name and a cell for each further column."""

    title: str
    intro: str
    columns: Sequence[str]
    rows: Sequence[tuple[Cell, ...]]


def rows_of(test: str, rows: dict[str, tuple[str, str]]) -> list[tuple[str, Cell, str]]:
    """Return rows for runs of one test; `rows` maps the part of the id in brackets to the row's name and its note."""
    return [(name, Tried(f"{test}[{run}]"), note) for run, (name, note) in rows.items()]


def packs(name: str) -> Tried:
    """Return the test of what other packs do to prompts, `name` being the rest of its id."""
    return Tried(f"test_other_prompts.py::test_{name}")


TABLES = [
    Table(
        "Families of models",
        "SD1 is tested on the demo model, which has SD1.5's layers and text encoder. SD2, SDXL and the transformers are tested on "
        "small models of their architectures, and KOALA-700M on its full architecture, all with random weights. No family has been "
        "tested on a [real checkpoint](checkpoints.md) yet. A small Wan is also trained and used through a server "
        "(`test_video.py`). For SSD-1B, Vega and KOALA-1B, "
        "`test_those_made_of_sdxl_are_its_family_and_take_their_own_concepts_alone` tests that all their layers are found and "
        "that concepts for another architecture are refused.",
        ("family", "train", "apply", "combine", "export"),
        [
            (
                "SD1.x",
                Tried("test_nodes.py::test_training_gives_a_concept_a_plot_and_a_preview"),
                Tried("test_nodes.py::test_prompts_without_the_trigger_are_the_base_bit_for_bit"),
                Tried("test_nodes.py::test_applying_twice_is_applying_the_combined"),
                Tried("test_nodes.py::test_the_stock_loader_draws_the_static_edit"),
            ),
            *[
                (
                    name,
                    *[Tried(f"{TAUGHT}[{run}]")] * 2,
                    Tried(f"{COMBINED}[{run}]"),
                    NO_LORA if run == "pixart" else Tried(f"{EXPORTED}[{run}]"),
                )
                for name, run in FAMILIES.items()
            ],
            ("SD3, Flux, Chroma, Qwen-Image, Z-Image, Lumina 2 and similar models", JOINT, JOINT, "", JOINT),
            ("all others", KINDS, KINDS, "", KINDS),
        ],
    ),
    Table(
        "Nodes that patch the model",
        "Each node is tested before and after *Apply Concept*. A prompt without the trigger word gives bit for bit the same result "
        "as without the concept. With the trigger word, the order of the two nodes makes no difference beyond rounding, and both "
        "the node and the concept act.",
        ("node", "test", "what to know"),
        [
            *rows_of(
                PATCHES,
                {
                    "LoraLoader": ("Load LoRA", "The edit is added to the output of the LoRA's layers."),
                    "LoraLoaderBypass": ("Load LoRA (Bypass)", ""),
                    "ModelMergeSimple": ("ModelMergeSimple, as **model1**", ""),
                },
            ),
            (
                "ModelMergeSimple, as **model2**",
                Tried("test_neighbours.py::test_a_merge_takes_the_second_models_weights_alone"),
                "The concept is lost: a merge takes only weights from its second model. Apply it to **model1** or after the merge.",
            ),
            *rows_of(
                PATCHES,
                {
                    "PerturbedAttentionGuidance": ("Perturbed-Attention Guidance", ""),
                    "SelfAttentionGuidance": ("Self-Attention Guidance", ""),
                    "NAGuidance": ("Normalized Attention Guidance", ""),
                    "HyperTile": ("HyperTile", ""),
                    "TomePatchModel": ("ToMe", ""),
                    "UNetCrossAttentionMultiply": ("UNetCrossAttentionMultiply", ""),
                    "RescaleCFG": ("RescaleCFG", ""),
                    "PatchModelAddDownscale": (
                        "Deep Shrink",
                        "Does not work with a **region**, *Watch Attention*, *Keep Layout* or *Find Object*, which stop with an "
                        "error.",
                    ),
                },
            ),
            (
                "FreeU",
                Tried("test_families.py::test_freeu_acts_beside_the_concept[sdxl]"),
                "Tested on SDXL's architecture: FreeU scales only blocks that are wider than the first, and the demo model has "
                "none.",
            ),
            *rows_of(
                PATCHES,
                {
                    "TestMoreTokens": ("Packs that append tokens (`attn2_patch`)", "Concepts do not act on the appended tokens."),
                    "TestMoreOutput": ("Packs that change the output of attention (`attn2_output_patch`)", ""),
                    "TestSecondAttention": (
                        "Packs that compute cross-attention themselves (`attn2_replace`), such as IP-Adapter",
                        "A **region** and *Keep Layout* do not reach those layers; the concept does.",
                    ),
                    "TestOwnAttention": ("Packs with their own attention (`optimized_attention_override`)", ""),
                },
            ),
            (
                "TorchCompileModel",
                Tried("test_neighbours.py::test_a_compiled_model_is_the_same_as_before"),
                "Also tested with [Inductor](../benchmarks/results/compiled.md). Layers are compiled one by one, so the speed-up "
                "is smaller.",
            ),
            ("Context Windows", Tried("test_neighbours.py::test_context_windows_see_the_concept"), ""),
            (
                "MultiGPU CFG Split, Select Model Device",
                Tried("test_neighbours.py::test_a_clone_for_another_card_carries_the_concept"),
                "Tested on a CPU, with the clone that ComfyUI makes for each GPU; two GPUs were not available.",
            ),
            (
                "Save Checkpoint",
                Tried("test_neighbours.py::test_a_saved_checkpoint_is_the_base_without_the_concept"),
                "Saves the base model without the concept and its word; use *Save Concept* or *Export Concept* for those.",
            ),
        ],
    ),
    Table(
        "Nodes that change the conditioning",
        "The same checks, with the node placed between *CLIP Text Encode* and the sampler.",
        ("node", "test", "what to know"),
        rows_of(
            CONDITIONS,
            {
                "ConditioningCombine": ("Combine", ""),
                "ConditioningConcat": ("Concat", ""),
                "ConditioningAverage": (
                    "Average",
                    "The smaller the share of the prompt with the trigger word, the less the gate opens, down to not at all.",
                ),
                "ConditioningSetTimestepRange": ("SetTimestepRange", ""),
                "ConditioningSetAreaPercentage": ("Set Area (with Percentage)", ""),
                "ConditioningSetMask": ("Set Mask", ""),
                "ControlNetApplyAdvanced": ("Apply ControlNet", "The ControlNet reads the prompt without the edit."),
                "CreateHookLora": ("LoRAs as hooks, with a schedule", ""),
                "a prompt of two sections": ("Prompts of unequal length in one batch", ""),
            },
        ),
    ),
    Table(
        "Packs that read prompts or generate images their own way",
        "The tests use nodes that treat prompts, encodings and images the way these packs do, not the packs themselves. If an "
        "encoding still records which concept it names, the concept acts as usual. If a pack rebuilds an encoding, a token that is "
        "more like the concept's own word than like its superclass counts as that word, and the console says so.",
        ("pack", "test", "what to know"),
        [
            (
                "Any node that copies, saves, reshapes or mixes an encoding",
                packs("an_encoding_that_was_rebuilt_says_what_it_said"),
                "",
            ),
            (
                "BlenderNeko's Advanced CLIP Text Encode, prompt-control",
                packs("beside_encoders_that_weight_words_their_own_way[TestWeightedEncode]"),
                "With SDXL, Advanced Encode bypasses the CLIP and calls the text encoders; its encodings are read by similarity.",
            ),
            (
                "CLIP NegPip",
                packs("beside_negative_weights_in_keys_and_values_apart"),
                "A concept with a negative weight gets no edit.",
            ),
            (
                "Attention Couple (PPM, cgem156), COUPLE of prompt-control",
                packs("each_of_two_regional_prompts_has_its_own_concept[coupled]"),
                "A regional prompt names its own concepts. Painted **regions** of concepts do not reach it.",
            ),
            (
                "Attention Couple (laksjdjf), ComfyCouple",
                packs("each_of_two_regional_prompts_has_its_own_concept[copied]"),
                "As above.",
            ),
            (
                "Wrappers that pass the model only the conditions they know",
                packs("a_wrapper_that_drops_conditions_leaves_the_concept"),
                "Does not work with a **region**, *Watch Attention* or *Keep Layout*.",
            ),
            (
                "Ultimate SD Upscale",
                packs("regions_stay_where_they_are_in_tiles"),
                "Regions follow the tiles in versions from 2025 onwards. In batched mode, and in older versions, the whole region "
                "is applied to each tile.",
            ),
            (
                "FaceDetailer, TiledKSampler",
                "",
                "They do not report which part of the image they are generating; for the detail pass, use a concept without a "
                "**region**.",
            ),
            (
                "smZNodes' CLIP Text Encode++",
                packs("another_packs_tokenizer_is_said_to_know_no_trigger"),
                "It has its own tokenizer, which does not know trigger words: the console says so, and no concept acts.",
            ),
            ("Efficient Loader", "", "It encodes with a CLIP that it loads itself. Apply the concept after it and encode again."),
            (
                "Old FreeU Advanced, DeepCache",
                packs("a_replaced_forward_is_named"),
                "They run the model themselves and skip what packs add to it: the console says so, and no concept acts.",
            ),
            (
                "LoRA tag loaders",
                packs("a_trigger_without_brackets_and_one_that_was_removed_are_warned_of"),
                "They remove everything in angle brackets. Add the trigger word after them.",
            ),
        ],
    ),
    Table(
        "Guiders",
        "Guiders with more than two prompts or more than one model.",
        ("node", "test", "what to know"),
        [
            *rows_of(
                GUIDERS,
                {
                    "DualCFGGuider": ("Dual CFG Guider", ""),
                    "PerpNegGuider": ("Perp-Neg Guider", ""),
                    "DualModelGuider": ("Dual Model CFG Guider", ""),
                },
            ),
            (
                "The same, with a trigger word in the negative prompt",
                Tried("test_neighbours.py::test_of_two_models_the_first_ones_concepts_act_in_a_negative_that_names_them"),
                "ComfyUI passes on to **model_negative** what is attached to **model**, so concepts applied to **model** act in "
                "the negative prompt and those applied only to **model_negative** do not. Apply them to both.",
            ),
        ],
    ),
    Table(
        "One graph after another",
        "",
        ("what", "test", "what to know"),
        [
            (
                "Queued graphs with different concepts",
                Tried("test_neighbours.py::test_graphs_with_different_stacks_are_queued_side_by_side"),
                "",
            ),
            ("A graph after an out-of-memory error", Tried("test_neighbours.py::test_a_graph_runs_again_after_memory_ran_out"), ""),
        ],
    ),
    Table(
        "Training",
        "What *Train Concept* has been tested with, and what it refuses. The *device* is the simulated one from `test_device.py`, "
        "whose tensors are separate from the CPU's but which computes on the CPU, in half precision. Its gradients are compared "
        "with the CPU's own.",
        ("what", "test", "what to know"),
        [
            (
                "float32 and fp16 on the device, with SD1.5's and SDXL's architectures",
                Tried("test_device.py::test_gradients_are_those_of_the_processor"),
                "fp16 uses loss scaling.",
            ),
            (
                "The text encoder on the CPU, the UNet on the device",
                Tried("test_device.py::test_an_encoder_on_the_processor_teaches_a_unet_elsewhere"),
                "As with `device: cpu` in the loaders; tested in bf16.",
            ),
            ("A LoRA on the text encoder only", Tried("test_device.py::test_a_lora_on_the_encoder_alone_takes_part"), ""),
            (
                "`--lowvram`, with previews and a LoRA",
                Tried("test_flags.py::test_where_weights_wait_beside_the_device_a_concept_is_taught_with_previews_and_a_lora"),
                "",
            ),
            (
                "Dynamic VRAM, which moves models in parts",
                Tried("test_device.py::test_what_the_host_moves_in_parts_is_taught_as_a_whole"),
                "Models are loaded as a whole for training.",
            ),
            (
                "`--use-sage-attention`, `--use-flash-attention`",
                Tried("test_inside_training.py::test_training_differentiates_whatever_attention_the_server_uses"),
                "These have no backward pass, so training uses PyTorch's attention and sampling uses the flag's. Tested with a "
                "stand-in for the attention function.",
            ),
            *(
                (
                    f"{kind} checkpoints",
                    Tried(
                        "test_inside_training.py::test_bases_that_read_further_channels_are_taught_with_blank_ones"
                        f"[{kind}-{channels}]"
                    ),
                    "Their extra channels are blank, as if no image were given. They also accept concepts trained on the ordinary "
                    "model.",
                )
                for kind, channels in (("inpainting", 9), ("InstructPix2Pix", 8))
            ),
            (
                "GGUF and other quantised checkpoints",
                "Refused: *Training cannot read this model …*",
                "Concepts can still be applied to them.",
            ),
            ("Files without a text encoder or a VAE", "Refused: *No text encoder: …*, *No VAE: …*", ""),
            ("A VAE that returns NaN or infinity", "Refused: *The VAE returned NaN or infinity …*", ""),
        ],
    ),
    Table(
        "Flags of ComfyUI",
        "With each flag, prompts without the trigger word give the base model's result bit for bit. With another attention "
        "implementation, images are the same as with the default, up to rounding. With lower-precision weights, the base model's "
        "own images change, and a concept has the same effect on them. Computing in fp16, as GPUs do, is tested on the "
        "[simulated device](#training).",
        ("flags", "test", "what to know"),
        [
            *rows_of(
                FLAGS,
                {
                    "split attention, nothing cached": ("`--use-split-cross-attention`, `--cache-none`", ""),
                    "torch's attention": (
                        "`--use-pytorch-cross-attention`, `--cache-classic`",
                        "`--use-quad-cross-attention` is the default on CPUs, so all other tests here use it.",
                    ),
                    "weights in bf16": ("`--bf16-unet`", "On CPUs, ComfyUI computes in float32 with these weights."),
                },
            ),
            (
                "`--fp8_e4m3fn-unet`, `--fp8_e4m3fn-text-enc`",
                Tried("test_flags.py::test_with_weights_of_eight_bits_a_concept_does_the_same[fp8]"),
                "As above. In eight bits, encodings are less similar to the target, so a gate with a high bias opens less: the "
                "demo's concept acts 0.9 times as strongly as without the flags at a bias of 0.6, and 1.2 times at 0.45. "
                "If a concept fades, lower its bias.",
            ),
            *(
                (
                    f"`--{flag}`",
                    Tried(f"test_flags.py::test_where_weights_wait_beside_the_device[{flag}]"),
                    "On the [simulated device](#training).",
                )
                for flag in ("lowvram", "novram", "highvram")
            ),
        ],
    ),
]


def cells() -> Iterator[Cell]:
    """Iterate over all cells of the page, row names excluded."""
    return (cell for table in TABLES for row in table.rows for cell in row[1:])


def tried() -> list[Tried]:
    """Return all tests that the page names, without duplicates."""
    return list(dict.fromkeys(cell for cell in cells() if isinstance(cell, Tried)))
