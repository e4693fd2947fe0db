"""Laws of the students that come with the package: they open offline by name, are small, and do what they are for."""

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel

from robustdistiller.assets import asset, shipped
from robustdistiller.models.student import load_student
from robustdistiller.objectives.quality import si_sdr

STUDENTS = [name for name in shipped() if (asset(name) / "heads.json").is_file()]


@pytest.fixture(scope="module")
def sentence():
    pytest.importorskip("espeakng_loader")
    from robustdistiller.randomness import generator
    from robustdistiller.synthetic.speakers import speakers
    from robustdistiller.synthetic.texts import sentence

    speaker = next(iter(speakers("test", 1, 0)))
    return torch.from_numpy(speaker.say(sentence(generator(0, "sentence", 0))).wave)[None]


def test_the_package_ships_these():
    assert {"mini-robust", "mini-edge", "mini-deep", "mini-stream"} == set(STUDENTS)


@pytest.mark.parametrize("name", STUDENTS)
def test_it_is_small_and_names_no_place_of_the_machine_that_made_it(name):
    files = list(asset(name).iterdir())
    assert sum(file.stat().st_size for file in files) < 15e6
    for file in files:
        if file.suffix != ".safetensors":
            text = file.read_text(encoding="utf-8")
            assert not any(place in text for place in ("/tmp", "/home", "/work", "/root"))
    card = (asset(name) / "README.md").read_text(encoding="utf-8")
    assert "license:" in card and "Speech:" in card


@pytest.mark.parametrize("name", STUDENTS)
def test_it_opens_by_its_name_and_in_plain_transformers(name, sentence):
    student = load_student(name)
    extractor, model = (kind.from_pretrained(asset(name)) for kind in (AutoFeatureExtractor, AutoModel))
    with torch.no_grad():
        theirs = model.eval()(
            extractor(sentence[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_values
        ).last_hidden_state
    torch.testing.assert_close(theirs, student.states(sentence)[0][:, -1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("snr_db", [0, 10])
def test_its_enhancement_brings_noisy_speech_nearer_to_the_clean(sentence, snr_db):
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(sentence.shape).astype(np.float32))
    noisy = sentence + noise * (sentence.square().mean() / noise.square().mean() / 10 ** (snr_db / 10)).sqrt()
    lengths = torch.tensor([sentence.shape[1]])
    before, after = (float(si_sdr(x, sentence, lengths)) for x in (noisy, load_student("mini-robust").enhance(noisy)))
    assert after > before + 3


def test_its_features_of_noisy_speech_are_nearer_to_the_clean_ones_than_its_teachers(sentence):
    from robustdistiller.models.teacher import load_teacher

    noise = torch.from_numpy(np.random.default_rng(1).standard_normal(sentence.shape).astype(np.float32))
    noisy = sentence + noise * (sentence.square().mean() / noise.square().mean() / 10).sqrt()  # 10 dB
    student, teacher = load_student("mini-robust"), load_teacher("mini-hubert", (12,), "fp32")

    def kept(states):
        clean, heard = (states(wave)[0][0, -1] for wave in (sentence, noisy))
        return float(torch.nn.functional.cosine_similarity(clean - clean.mean(0), heard - clean.mean(0), dim=-1).mean())

    assert kept(student.states) > kept(teacher.states)


def test_mini_stream_needs_no_sample_beyond_its_latency(sentence):
    student = load_student("mini-stream@160+160")
    chunking = student.chunking
    frames = 5 * chunking.chunk
    needed = int((frames - chunking.chunk) * 320 + chunking.latency * 16_000)
    whole, first = (student.states(wave)[0][:, :, :frames] for wave in (sentence, sentence[:, :needed]))
    torch.testing.assert_close(first, whole, atol=1e-4, rtol=0)
    offline = load_student("mini-stream").states(sentence)[0][:, :, :frames]
    assert (offline - whole)[:, -1].abs().max() > 0.01  # which is given all of the sentence
