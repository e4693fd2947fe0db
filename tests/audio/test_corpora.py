"""Every corpus by its real layout, on tiny trees: who speaks, what sounds, and what splits must not share."""

from pathlib import Path

import pytest

from robustdistiller.audio.corpora import CORPORA, detect, scan_corpus
from robustdistiller.audio.io import find_audio
from robustdistiller.audio.manifest import recording_from_row
from robustdistiller.audio.splits import split_by_group
from robustdistiller.errors import UserError


def tree(root: Path, **files: str) -> Path:
    """A tree of empty audio files and of lists with content; names are given as keyword or in one string."""
    for name, content in files.items():
        for path in content.split() if name == "audio" else [name]:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text("" if name == "audio" else content)
    return root


def rows(folder: Path, role: str, name: str | None = None) -> dict[str, dict]:
    return {row["id"]: row for row in scan_corpus(folder, role, name)[1]}


@pytest.fixture
def librispeech(tmp_path):
    return tree(
        tmp_path / "LibriSpeech",
        audio="train-clean-100/19/198/19-198-0000.flac train-clean-100/19/198/19-198-0001.flac "
        "dev-clean/84/121123/84-121123-0000.flac test-other/367/130732/367-130732-0000.flac",
        **{"train-clean-100/19/198/19-198.trans.txt": "19-198-0000 NORTHANGER ABBEY\n19-198-0001 THIS LITTLE WORK\n"},
    )


def test_librispeech_knows_speaker_split_and_text(librispeech):
    assert detect(find_audio(librispeech)) == "librispeech"
    found = rows(librispeech, "speech")
    first = found["train-clean-100/19/198/19-198-0000"]
    assert (first["speaker"], first["split"], first["text"]) == ("19", "train", "NORTHANGER ABBEY")
    assert found["dev-clean/84/121123/84-121123-0000"]["split"] == "valid"
    assert found["test-other/367/130732/367-130732-0000"]["split"] == "test"
    assert len(rows(librispeech / "dev-clean", "speech")) == 1  # a part is a source too


def test_musan_gives_noise_as_noise_and_speech_as_speech(tmp_path):
    musan = tree(
        tmp_path / "musan",
        audio="noise/free-sound/noise-free-sound-0000.wav noise/sound-bible/noise-sound-bible-0001.wav "
        "speech/us-gov/speech-us-gov-0000.wav music/fma-western-art/music-fma-wa-0000.wav",
    )
    assert sorted(rows(musan, "noise")) == [
        "noise/free-sound/noise-free-sound-0000",
        "noise/sound-bible/noise-sound-bible-0001",
    ]
    assert list(rows(musan, "speech")) == ["speech/us-gov/speech-us-gov-0000"]
    assert list(rows(musan / "noise" / "free-sound", "noise")) == ["noise-free-sound-0000"]
    with pytest.raises(UserError, match="holds no rooms"):
        scan_corpus(musan, "rooms")


def test_urbansound_leaves_out_voices_and_songs_and_groups_slices_by_their_recording(tmp_path):
    urban = tree(
        tmp_path / "UrbanSound8K",
        audio="audio/fold1/101415-3-0-2.wav audio/fold1/101415-3-0-3.wav audio/fold5/100263-2-0-117.wav "
        "audio/fold10/99180-9-0-7.wav audio/fold10/100648-1-0-0.wav",
    )
    found = rows(urban, "noise")
    assert {row["label"] for row in found.values()} == {"dog_bark", "car_horn"}
    slices = [found[f"audio/fold1/101415-3-0-{n}"] for n in (2, 3)]
    assert slices[0]["group"] == slices[1]["group"] != found["audio/fold10/100648-1-0-0"]["group"]
    assert (slices[0]["fold"], found["audio/fold10/100648-1-0-0"]["fold"]) == (1, 10)


RIRS = (
    "simulated_rirs/smallroom/Room001/Room001-00001.wav simulated_rirs/smallroom/Room001/Room001-00002.wav "
    "simulated_rirs/largeroom/Room001/Room001-00001.wav real_rirs_isotropic_noises/RWCP_type4_rir_p30r.wav "
    "real_rirs_isotropic_noises/RVB2014_type1_rir_largeroom1_near_angla.wav "
    "real_rirs_isotropic_noises/RVB2014_type1_rir_largeroom1_far_anglb.wav "
    "real_rirs_isotropic_noises/RVB2014_type1_noise_largeroom1_1.wav "
    "real_rirs_isotropic_noises/RWCP_type1_rir_circle_e1c_imp010.wav "
    "real_rirs_isotropic_noises/RWCP_type2_rir_cirline_e1c_imp090.wav "
    "real_rirs_isotropic_noises/air_type1_air_binaural_aula_carolina_1_2_90_3.wav "
    "real_rirs_isotropic_noises/air_type1_air_phone_aula_carolina_hfrp.wav "
    "pointsource_noises/noise-free-sound-0000.wav"
)


def test_rirs_noises_groups_responses_by_room_and_keeps_noise_apart(tmp_path):
    found = rows(tree(tmp_path / "RIRS_NOISES", audio=RIRS), "rooms")
    groups = {Path(name).name: row["group"] for name, row in found.items() if "simulated" not in name}
    assert groups == {
        "RWCP_type4_rir_p30r": "RWCP_type4",
        "RVB2014_type1_rir_largeroom1_near_angla": "RVB2014-largeroom1",
        "RVB2014_type1_rir_largeroom1_far_anglb": "RVB2014-largeroom1",
        "RWCP_type1_rir_circle_e1c_imp010": "RWCP-e1c",
        "RWCP_type2_rir_cirline_e1c_imp090": "RWCP-e1c",
        "air_type1_air_binaural_aula_carolina_1_2_90_3": "air-aula_carolina",
        "air_type1_air_phone_aula_carolina_hfrp": "air-aula_carolina",
    }
    simulated = [row["group"] for name, row in found.items() if "simulated" in name]
    assert sorted(simulated) == ["large-Room001", "small-Room001", "small-Room001"]
    noise = rows(tmp_path / "RIRS_NOISES", "noise")
    assert {Path(name).name for name in noise} == {"RVB2014_type1_noise_largeroom1_1", "noise-free-sound-0000"}


def test_dns_rirs_share_their_rooms_between_slr26_and_slr28(tmp_path):
    dns = tree(
        tmp_path / "impulse_responses",
        audio="SLR26/simulated_rirs_48k/smallroom/Room001/Room001-00001.wav "
        + " ".join(f"SLR28/RIRS_NOISES/{path}" for path in RIRS.split()),
    )
    assert detect(find_audio(dns)) == "dns_rirs"
    found = rows(dns, "rooms")
    assert len(found) == 11
    one = found["SLR26/simulated_rirs_48k/smallroom/Room001/Room001-00001"]
    other = found["SLR28/RIRS_NOISES/simulated_rirs/smallroom/Room001/Room001-00001"]
    assert one["group"] == other["group"] == "small-Room001"


def test_esc50_groups_takes_of_one_recording(tmp_path):
    esc = tree(
        tmp_path / "ESC-50-master",
        audio="audio/1-100032-A-0.wav audio/1-17367-A-10.wav audio/2-17367-B-10.wav",
        **{
            "meta/esc50.csv": "filename,fold,target,category,esc10,src_file,take\n1-17367-A-10.wav,1,10,rain,True,17367,A\n"
        },
    )
    found = rows(esc, "noise")
    assert found["audio/1-17367-A-10"]["label"] == "rain" and found["audio/1-100032-A-0"]["label"] == "class-0"
    assert found["audio/1-17367-A-10"]["group"] == found["audio/2-17367-B-10"]["group"] == "17367"


def test_demand_is_heard_by_one_of_its_microphones(tmp_path):
    audio = " ".join(f"{place}/ch{n:02d}.wav" for place in ("DKITCHEN", "TBUS") for n in range(1, 17))
    found = rows(tree(tmp_path / "DEMAND", audio=audio), "noise")
    assert {name: row["group"] for name, row in found.items()} == {"DKITCHEN/ch01": "DKITCHEN", "TBUS/ch01": "TBUS"}


def test_speech_commands_follow_the_official_lists(tmp_path):
    commands = tree(
        tmp_path / "speech_commands",
        audio="yes/0a7c2a8d_nohash_0.wav yes/0a7c2a8d_nohash_1.wav no/1b4c9b89_nohash_0.wav no/ffd2ba2f_nohash_4.wav",
        **{
            "_background_noise_/pink_noise.wav": "",
            "validation_list.txt": "no/1b4c9b89_nohash_0.wav\n",
            "testing_list.txt": "no/ffd2ba2f_nohash_4.wav\n",
        },
    )
    for n in range(30):  # the share of background noise is small in the real corpus
        tree(commands, audio=f"go/{n:08x}_nohash_0.wav")
    found = rows(commands, "speech")
    assert [found[f"yes/0a7c2a8d_nohash_{n}"]["speaker"] for n in (0, 1)] == ["0a7c2a8d"] * 2
    splits = [
        found[name]["split"] for name in ("yes/0a7c2a8d_nohash_0", "no/1b4c9b89_nohash_0", "no/ffd2ba2f_nohash_4")
    ]
    assert splits == ["train", "valid", "test"] and found["go/00000000_nohash_0"]["label"] == "go"
    assert list(rows(commands, "noise")) == ["_background_noise_/pink_noise"]


def test_fluent_speech_commands_have_slots_speakers_and_splits(tmp_path):
    header = ",path,speakerId,transcription,action,object,location\n"
    fluent = tree(
        tmp_path / "fluent_speech_commands_dataset",
        audio="wavs/speakers/2BqVo8kVB2Skwgyb/0a31.wav wavs/speakers/4BrX8aDqK2cLZRYl/cbdf.wav",
        **{
            "data/train_data.csv": header + "0,wavs/speakers/2BqVo8kVB2Skwgyb/0a31.wav,2BqVo8kVB2Skwgyb,"
            '"Turn the lights on, please",activate,lights,none\n',
            "data/test_data.csv": header + "0,wavs/speakers/4BrX8aDqK2cLZRYl/cbdf.wav,4BrX8aDqK2cLZRYl,"
            "Louder,increase,volume,none\n",
            "data/valid_data.csv": header,
        },
    )
    first, second = rows(fluent, "speech").values()
    assert first["slots"] == {"action": "activate", "object": "lights", "location": "none"}
    assert (first["speaker"], first["split"], first["label"]) == ("2BqVo8kVB2Skwgyb", "train", "activate lights none")
    assert first["text"] == "Turn the lights on, please" and second["split"] == "test"


def test_iemocap_merges_excitement_into_happiness_and_leaves_the_rest_out(tmp_path):
    name = "Ses02F_impro01"
    labels = {"F000": "neu", "F001": "exc", "M000": "hap", "M001": "fru", "M002": "xxx"}
    lines = "".join(f"[0.0 - 1.0]\t{name}_{end}\t{label}\t[2.5, 2.5, 2.5]\n" for end, label in labels.items())
    iemocap = tree(
        tmp_path / "IEMOCAP_full_release",
        audio=" ".join(f"Session2/sentences/wav/{name}/{name}_{end}.wav" for end in labels),
        **{
            f"Session2/dialog/EmoEvaluation/{name}.txt": "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
            + lines,
            f"Session2/dialog/transcriptions/{name}.txt": f"{name}_F000 [000.0-001.0]: Excuse me.\n",
        },
    )
    found = {Path(key).name.split("_")[-1]: row for key, row in rows(iemocap, "speech").items()}
    assert {end: row["label"] for end, row in found.items()} == {"F000": "neu", "F001": "hap", "M000": "hap"}
    assert (found["F000"]["speaker"], found["M000"]["speaker"], found["M000"]["session"]) == ("Ses02F", "Ses02M", 2)
    assert found["F000"]["text"] == "Excuse me."


def test_any_other_folder_is_just_a_folder(tmp_path):
    folder = tree(tmp_path / "mine", audio="a/1.wav a/1.flac b/x.y.ogg 2024-01-02.wav")
    assert detect(find_audio(folder)) == "folder"
    assert sorted(rows(folder, "rooms")) == ["2024-01-02", "a/1", "a/1.wav", "b/x.y"]


def test_a_corpus_in_another_layout_is_told_what_is_expected(tmp_path, librispeech):
    with pytest.raises(UserError, match="holds no audio files"):
        scan_corpus(tree(tmp_path / "empty", **{"readme.txt": "nothing"}), "speech")
    with pytest.raises(UserError, match=r"layout of iemocap .*EmoEvaluation"):
        scan_corpus(librispeech, "speech", "iemocap")
    with pytest.raises(UserError, match="librispeech, which holds no noise"):
        scan_corpus(librispeech, "noise")


def test_vctk_names_its_speakers_and_reads_its_texts(tmp_path):
    audio = " ".join(f"wav48/p22{s}/p22{s}_00{u}_mic{m}.flac" for s in (5, 6) for u in (1, 2) for m in (1, 2))
    folder = tree(tmp_path / "VCTK", audio=audio, **{"txt/p225/p225_001.txt": "Please call Stella."})
    found = rows(folder, "speech")
    assert len(found) == 8 and {row["speaker"] for row in found.values()} == {"p225", "p226"}
    assert found["wav48/p225/p225_001_mic2"]["text"] == "Please call Stella."


def test_common_voice_reads_its_tables(tmp_path):
    names = [f"common_voice_en_{n}.mp3" for n in range(4)]
    head = "client_id\tpath\tsentence\n"
    folder = tree(
        tmp_path / "en",
        audio=" ".join(f"clips/{name}" for name in names),
        **{
            "validated.tsv": head + f'aa\t{names[0]}\tThe "first\naa\t{names[1]}\tTwo\nbb\t{names[2]}\tThree\n',
            "train.tsv": head + f"aa\t{names[0]}\tThe first\n",
            "dev.tsv": head + f"bb\t{names[2]}\tThree\n",
        },
    )
    found = rows(folder, "speech")
    assert [found[f"clips/common_voice_en_{n}"].get("speaker") for n in range(4)] == ["aa", "aa", "bb", None]
    assert [found[f"clips/common_voice_en_{n}"].get("split") for n in range(4)] == ["train", None, "valid", None]


def test_ami_keeps_the_meetings_of_a_group_together(tmp_path):
    names = [
        f"amicorpus/{m}/audio/{m}.{mic}.wav"
        for m in ("ES2002a", "ES2002b", "IS1000a")
        for mic in ("Headset-0", "Mix-Headset")
    ]
    found = rows(tree(tmp_path, audio=" ".join(names)), "speech")
    assert {row["group"] for row in found.values()} == {"ES2002", "IS1000"} and len(found) == 6


@pytest.mark.parametrize("name", ["{s}/{s}_{u}_mic{m}", "spk{s}/{u}_mic{m}", "speaker-{s}/u{u}-ch{m}"])
def test_folders_of_speakers_are_speakers_and_parallel_microphones_one_unit(tmp_path, name):
    """Six speakers, four utterances, two microphones: no voice and no utterance is on both sides."""
    audio = " ".join(name.format(s=s, u=u, m=m) + ".wav" for s in range(10, 16) for u in range(4) for m in (1, 2))
    recordings = [
        recording_from_row({**row, "duration": 1.0}, row["path"])
        for row in rows(tree(tmp_path / "f", audio=audio), "speech").values()
    ]
    assert len({r.speaker for r in recordings}) == 6
    for seed in range(5):
        parts = split_by_group(recordings, 0.3, seed)
        assert not {r.speaker for r in parts["train"]} & {r.speaker for r in parts["valid"]} and parts["valid"]


def test_parallel_microphones_in_one_folder_are_one_unit(tmp_path):
    audio = " ".join(f"u{u}_mic{m}.wav" for u in range(12) for m in (1, 2))
    found = rows(tree(tmp_path / "f", audio=audio), "speech")
    assert len({row["group"] for row in found.values()}) == 12
    assert not any("speaker" in row for row in found.values())
    plain = rows(tree(tmp_path / "g", audio="words/yes/1.wav words/no/1.wav"), "speech")
    assert not any("speaker" in row or "group" in row for row in plain.values())  # a word is no speaker


def test_every_named_corpus_is_known():
    names = "librispeech musan urbansound8k rirs_noises dns_rirs esc50 demand speech_commands fluent_speech_commands"
    assert set(CORPORA) == {*names.split(), "iemocap", "vctk", "common_voice", "ami", "folder"}
