"""Packed passes share a model and nothing else: they may interleave, fail, and run beside plain ones."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module

from m3_backbone.decoding.packing import PackedSegments
from m3_backbone.llava.backbone import LlavaBackbone

QUESTIONS = ["What color is the circle?", "How many?", "Which of these is shown?\nA. a cat\nB. a dog", "Why"]


def open_backbone(recording):
    return LlavaBackbone(recording.folder / "checkpoint", device="cpu", max_new_tokens=5)


def answer(backbone, recording, scale, questions=QUESTIONS):
    images = recording.encoded[: len(questions)]
    return backbone.answer(images * 2, [*questions, *reversed(questions)], scale)


def generate(backbone, recording):
    prompt = backbone.processor.template.format(QUESTIONS[0])
    inputs = backbone.processor(recording.images[0], prompt, 9)
    return backbone.model.generate(**inputs, token_scale=9, max_new_tokens=5, do_sample=False).tolist()


def attentions(model):
    return [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")]


def test_two_passes_take_turns_layer_by_layer(recording, monkeypatch):
    backbone = open_backbone(recording)
    expected = [answer(backbone, recording, 9), answer(backbone, recording, 144, QUESTIONS[:2])]
    barrier, attend = Barrier(2, timeout=60), PackedSegments.attend

    def attend_in_turn(*arguments):
        barrier.wait()
        return attend(*arguments)

    monkeypatch.setattr(PackedSegments, "attend", attend_in_turn)
    before = backbone.work.num_answers
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(answer, backbone, recording, 9)
        second = threads.submit(answer, backbone, recording, 144, QUESTIONS[:2])
        assert [first.result(), second.result()] == expected
    assert backbone.work.num_answers - before == 12


def test_a_plain_pass_runs_in_the_middle_of_a_packed_one(recording, monkeypatch):
    backbone = open_backbone(recording)
    expected, plain = answer(backbone, recording, 9), generate(backbone, recording)
    attend, generated = PackedSegments.attend, []

    def generate_and_attend(*arguments):
        generated.append(generate(backbone, recording))
        return attend(*arguments)

    monkeypatch.setattr(PackedSegments, "attend", generate_and_attend)
    assert answer(backbone, recording, 9) == expected
    assert generated == [plain] * backbone.model.config.get_text_config().num_hidden_layers


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_a_pass_leaves_the_model_as_it_is_even_if_it_fails(recording, monkeypatch, kernel):
    backbone = open_backbone(recording)
    backbone.attn_implementation = kernel
    expected, plain = answer(backbone, recording, 9), generate(backbone, recording)
    assert set(attentions(backbone.model)) == {kernel}
    attend, seen = PackedSegments.attend, []

    def fail_in_the_second_layer(self, layer, *arguments):
        seen.append(attentions(backbone.model))
        if layer == 1:
            raise torch.OutOfMemoryError
        return attend(self, layer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(PackedSegments, "attend", fail_in_the_second_layer)
        with pytest.raises(torch.OutOfMemoryError):
            backbone.answer(recording.encoded[:1], QUESTIONS[:1], 9)
    assert set(map(frozenset, [*seen, attentions(backbone.model)])) == {frozenset({kernel})}
    assert generate(backbone, recording) == plain
    assert answer(backbone, recording, 9) == expected


@pytest.mark.parametrize("is_offloaded", [False, True])
def test_hooks_of_accelerate_run_in_packed_passes(plain, is_offloaded):
    """As `device_map` attaches them: to layers whose weights are on several devices, or are fetched."""
    expected = answer(open_backbone(plain), plain, 9)
    backbone = open_backbone(plain)
    model = backbone.model.model.language_model
    if is_offloaded:
        cpu_offload(model, torch.device("cpu"))
        assert all(weight.is_meta for weight in model.layers.parameters())
    calls = []

    class Counting(AlignDevicesHook):
        def pre_forward(self, module, *args, **kwargs):
            calls.append(module)
            return super().pre_forward(module, *args, **kwargs)

    for layer in model.layers:
        add_hook_to_module(layer, Counting(torch.device("cpu")), append=True)
    backbone._decoder.device = torch.device("cpu")  # that of the embedding, which may be offloaded
    assert answer(backbone, plain, 9) == expected
    assert len(calls) > 0 and not set(calls) & set(model.layers)
