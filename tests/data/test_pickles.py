"""Files that want to run code, or claim what they do not hold: refused in one line, at no cost, with nothing done."""

import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from standins import Persistent, edm_bytes, persistence, slimflow_content

from onestep_bench.data import pickles
from onestep_bench.denoiser import edm_denoiser
from onestep_bench.errors import OnestepError
from onestep_bench.models import checkpoints
from onestep_bench.models.pretrained import load_pretrained
from onestep_bench.networks.build import sized


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.fixture
def model():
    torch.manual_seed(0)
    return edm_denoiser(sized("0.05M", 8, 1))


@pytest.fixture
def canary(tmp_path):
    """A file that hostile pickles would make; it must not be there in the end."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def written(path, content):
    path.write_bytes(content)
    return path


# --- what is read


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


@given(plain, st.integers(0, 5))
def test_plain_values_come_back(tmp_path_factory, value, protocol):
    path = tmp_path_factory.getbasetemp() / "plain.pkl"
    assert pickles.read(written(path, pickle.dumps(value, protocol))) == value


@pytest.mark.parametrize("protocol", range(2, 6))
def test_statistics_come_back(tmp_path, protocol):
    value = {"mu": np.arange(3.0), "sigma": np.eye(3, dtype=np.float32)[::-1], "n": np.float64(2.5), "fn": np.int64(7)}
    value |= {"fortran": np.asfortranarray(np.arange(6).reshape(2, 3)), "twice": value["mu"]}
    content = pickle.dumps(value, protocol).replace(b"numpy._core", b"numpy.core") if protocol == 2 else None
    found = pickles.read(written(tmp_path / "x.pkl", content or pickle.dumps(value, protocol)))
    assert found.keys() == value.keys()
    for name in value:
        np.testing.assert_array_equal(found[name], value[name])
        assert found[name].dtype == value[name].dtype
    assert found["twice"] is found["mu"]


def test_tensors_come_back(tmp_path):
    base = torch.arange(12.0)
    value = OrderedDict(
        a=base.view(3, 4)[:, 1:], b=torch.tensor(3), c=base.half(), d=base.bfloat16(), e=torch.zeros(0, 2)
    )
    value["f"] = torch.nn.Parameter(base)
    torch.save(value, tmp_path / "zip.pth")
    for path in (tmp_path / "zip.pth", written(tmp_path / "plain.pkl", pickle.dumps(value))):
        found = pickles.read(path)
        for name, tensor in value.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)


def test_modules_of_torch_come_back_as_records(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Dropout(0.1))
    found = pickles.read(written(tmp_path / "net.pkl", pickle.dumps(net)))
    assert (found.name, [*found.state["_modules"]]) == ("torch.nn.modules.container.Sequential", ["0", "1"])
    conv = found.state["_modules"]["0"]
    assert conv.name == "torch.nn.modules.conv.Conv2d"
    assert torch.equal(conv.state["_parameters"]["weight"], net[0].weight)


def test_old_torch_files_are_named_as_such(tmp_path, refuses):
    torch.save({"a": torch.zeros(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with refuses("old.pth", "before 1.6", "save it again"):
        pickles.read(tmp_path / "old.pth")


# --- what wants to be run


COMMANDS = {
    "os.system": (os.system, "touch {}"),
    "os.mkdir": (os.mkdir, "{}"),
    "eval": (eval, "open({!r}, 'w')"),
    "exec": (exec, "open({!r}, 'w')"),
    "open": (open, "{}", "w"),
    "subprocess": (subprocess.call, ["touch", "{}"]),
}


def command(name, canary):
    function, *arguments = COMMANDS[name]
    fill = lambda text: text.replace("{!r}", repr(str(canary))).replace("{}", str(canary))  # noqa: E731
    return Call(function, *([fill(a) for a in arg] if isinstance(arg, list) else fill(arg) for arg in arguments))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", COMMANDS)
def test_calls_are_refused_by_name(tmp_path, canary, refuses, name, protocol):
    call = command(name, canary)
    path = written(tmp_path / "evil.pkl", pickle.dumps({"ema": call}, protocol))
    with refuses(str(path), "refused to unpickle", f".{call.function.__name__}: only data"):
        load_pretrained(path)


def test_calls_in_the_zip_of_torch_are_refused(tmp_path, canary, refuses):
    torch.save({"model": command("os.system", canary)}, tmp_path / "evil.pth")
    with refuses("evil.pth", "refused to unpickle posix.system"):
        load_pretrained(tmp_path / "evil.pth")


def test_source_code_in_a_model_is_never_run(tmp_path, canary, refuses, model):
    source = f"open({str(canary)!r}, 'w')"
    found = load_pretrained(written(tmp_path / "model.pkl", edm_bytes(model, module_src=source)))
    assert found.spec() == model.spec()
    with persistence() as (rebuild, EasyDict):
        meta = {"type": "class", "version": 6, "module_src": source, "class_name": "Evil", "state": {}}
        content = pickle.dumps({"ema": Persistent(rebuild, EasyDict(meta))})
    with refuses("evil.pkl", "Evil"):
        load_pretrained(written(tmp_path / "evil.pkl", content))


def test_calls_inside_a_tensors_storage_are_refused(tmp_path, canary, refuses, model):
    inner = io.BytesIO()
    torch.save(command("os.system", canary), inner, _use_new_zipfile_serialization=False)
    storage = Call(torch.storage._load_from_bytes, inner.getvalue())
    rebuilt = Call(torch._utils._rebuild_tensor_v2, storage, 0, (1,), (1,), False, OrderedDict())
    for content in (storage, rebuilt, {"ema": rebuilt}):
        with refuses("refused to unpickle posix.system"):
            load_pretrained(written(tmp_path / "evil.pkl", pickle.dumps(content)))


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'touch {}'\ntR.",
        b"(S'touch {}'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch {}'\no.",  # OBJ
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x08touch {}\x85R.",
        b"\x80\x02cbuiltins\ngetattr\n(cnumpy\ndtype\nU\x08__call__tR.",
        b"\x80\x02cnumpy\ndtype\n}U\x04makeNsb.",  # state for one of our own globals
        b"\x80\x02ccollections\nOrderedDict\n)R}U\x01aNsbU\x01bK\x01e.",
        b"\x80\x02cnumpy\nload\nU\x01x\x85R.",
    ],
)
def test_handwritten_instructions_are_refused(tmp_path, canary, refuses, content):
    path = written(tmp_path / "evil.pkl", content.replace(b"{}", str(canary).encode()))
    with refuses(str(path)):
        load_pretrained(path)


def test_names_in_messages_stay_on_one_line(tmp_path, refuses):
    with refuses("refused to unpickle os.a\\x1b[31m"):
        pickles.read(written(tmp_path / "evil.pkl", b"cos\na\x1b[31m" + b"x" * 10_000 + b"\n."))


# --- what claims more than it holds


def zip_of(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path.read_bytes()


def claims(folder):
    """Small files that claim ten gigabytes, by name."""
    ten = 10**10
    claims = {
        "bytes.pkl": b"\x80\x04\x8e" + struct.pack("<Q", ten) + b"abc.",
        "bytearray.pkl": b"\x80\x05\x96" + struct.pack("<Q", ten) + b"abc.",
        "text.pkl": b"\x80\x04\x8d" + struct.pack("<Q", ten) + b"abc.",
        "long.pkl": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"abc.",
        "frame.pkl": b"\x80\x04\x95" + struct.pack("<Q", ten) + b"N.",
        "memo.pkl": b"\x80\x02Nr" + struct.pack("<I", 2**31) + b".",
        "dtype.pkl": b"\x80\x02cnumpy\ndtype\nU\x0cV10000000000\x85R.",
    }
    array = pickle.dumps(np.zeros(3, np.uint8), 2)
    claims["array.pkl"] = array.replace(b"K\x03\x85", b"\x8a\x05" + ten.to_bytes(5, "little") + b"\x85")
    assert claims["array.pkl"] != array
    storage = Call(torch.storage._load_from_bytes, pickled_storage(1))
    tensor = Call(torch._utils._rebuild_tensor_v2, storage, 0, (10**5, 10**5), (0, 0), False, OrderedDict())
    claims["strides.pkl"] = pickle.dumps(tensor)
    claims["storage.pkl"] = pickle.dumps(Call(torch.storage._load_from_bytes, pickled_storage(ten)))
    zeros = folder / "bomb.zip"
    claims["bomb.pth"] = zip_of(zeros, {"archive/data.pkl": bytes(10**8)}, compression=zipfile.ZIP_DEFLATED)
    return claims


def pickled_storage(claimed):
    """One float32 as torch writes a storage of `claimed` numbers."""
    stream = io.BytesIO()
    torch.save(torch.zeros(1).untyped_storage(), stream, _use_new_zipfile_serialization=False)
    pid = ("storage", torch.FloatStorage, "1", "cpu", claimed, None)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return pid if value is pid else None

    stream = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {}, pid, ["1"]):
        Pickler(stream, 2).dump(value)
    return stream.getvalue() + struct.pack("<q", claimed) + bytes(4)


READ_ALL = """
import resource, sys
from pathlib import Path
from onestep_bench.models.pretrained import load_pretrained
from onestep_bench.errors import OnestepError
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        load_pretrained(path)
    except OnestepError as error:
        assert "\\n" not in str(error)
        print(path.name, "refused")
print("grown", (peak() - before) // 1024)
"""


def test_claims_cost_no_memory(tmp_path):
    folder = tmp_path / "claims"
    folder.mkdir()
    contents = claims(tmp_path)
    for name, content in contents.items():
        written(folder / name, content)
    told = subprocess.run([sys.executable, "-c", READ_ALL, folder], capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr
    *lines, grown = told.stdout.splitlines()
    assert lines == [f"{name} refused" for name in sorted(contents)]
    assert int(grown.split()[1]) < 64  # MiB


def test_what_a_tensor_has_not_is_refused_where_it_claims_it(tmp_path, refuses):
    with refuses("strides.pkl", "claims more than it has"):
        pickles.read(written(tmp_path / "strides.pkl", claims(tmp_path)["strides.pkl"]))


def test_an_entry_that_is_compressed_is_refused_though_it_be_no_smaller(tmp_path, refuses):
    """As no bomb would be; but what is said of one holds of all."""
    grown = (bytes(range(40)) + b"a" * count for count in range(1, 60))
    same = next(content for content in grown if _deflated(content) == len(content))
    with refuses("bomb.pth", "is compressed, as torch.save never does"):
        pickles.read(written(tmp_path / "bomb.pth", claims(tmp_path)["bomb.pth"]))
    zipped = zip_of(tmp_path / "same", {"archive/data.pkl": same}, compression=zipfile.ZIP_DEFLATED)
    with refuses("same.pth", "is compressed, as torch.save never does"):
        pickles.read(written(tmp_path / "same.pth", zipped))


def _deflated(content):
    packer = zlib.compressobj(wbits=-15)
    return len(packer.compress(content) + packer.flush())


def test_keys_that_take_for_ever_to_hash_are_refused(tmp_path, refuses):
    doubled = b"(K\x01" + b"q\x00h\x00\x86" * 60 + b"K\x02d."
    with refuses("evil.pkl", "key"):
        pickles.read(written(tmp_path / "evil.pkl", b"\x80\x02" + doubled))


def test_modules_that_contain_themselves_are_refused(tmp_path, refuses):
    with persistence() as (rebuild, EasyDict):
        state = EasyDict(_modules={}, _init_kwargs=EasyDict(sized("0.05M", 8, 1).config), _parameters={}, _buffers={})
        state["_init_kwargs"].pop("arch")
        net = Persistent(rebuild, EasyDict(module_src="", class_name="SongUNet", state=state))
        inner = Persistent(rebuild, EasyDict(module_src="", class_name="Conv2d", state=EasyDict(_modules={})))
        state["_modules"] |= {str(i): inner for i in range(3)}
        outer = EasyDict(module_src="", class_name="EDMPrecond", state=EasyDict(_modules={"model": net}))
        content = pickle.dumps({"ema": Persistent(rebuild, outer)})
    with refuses("contain each other"):
        load_pretrained(written(tmp_path / "evil.pkl", content))


# --- zips, safetensors and torn files


def test_zips_that_point_outside_are_refused(tmp_path, refuses):
    good = io.BytesIO()
    torch.save({}, good)
    with zipfile.ZipFile(good) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name in ("../evil", "/evil", "a/../../evil", "..\\evil"):
        zip_of(tmp_path / "evil.pth", members | {name: b"x"})
        with refuses("evil.pth", "points outside"):
            load_pretrained(tmp_path / "evil.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.pth"]


@pytest.mark.parametrize("length", [0, 3, 10**10, 2**63])
@pytest.mark.parametrize(
    "header", [b"", b"[" * 50_000, b'{"a":{"dtype":"F32","shape":[2500000000],"data_offsets":[0,10000000000]}}']
)
def test_lying_safetensors_are_refused(tmp_path, refuses, model, length, header):
    checkpoints.save(model, tmp_path)
    claimed = length or len(header)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", claimed) + header)
    with refuses(str(tmp_path), "no whole model"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 10, '{"network": {"arch": "SongUNet"}, "native": 4}', "3", ""])
def test_lying_descriptions_are_refused(tmp_path, refuses, model, text):
    checkpoints.save(model, tmp_path)
    (tmp_path / "config.json").write_text(text)
    with refuses(str(tmp_path)):
        load_pretrained(tmp_path)


def test_a_description_of_a_huge_network_costs_nothing(tmp_path, refuses, model):
    checkpoints.save(model, tmp_path)
    for change in ({"model_channels": 10**7}, {"num_blocks": 10**9}, {"channel_mult": [1] * 10**5}):
        spec = model.spec()
        (tmp_path / "config.json").write_text(json.dumps(spec | {"network": spec["network"] | change}))
        with refuses(str(tmp_path)):
            load_pretrained(tmp_path)


def slimflow_bytes(model):
    stream = io.BytesIO()
    torch.save(slimflow_content(model.net.state_dict()), stream)
    return stream.getvalue()


@pytest.mark.parametrize("make", [edm_bytes, slimflow_bytes], ids=["edm", "slimflow"])
def test_truncations_are_refused(tmp_path, model, make):
    whole = make(model)
    places = random.Random(0).sample(range(len(whole)), 20)
    for place in [*places, 0, 1, len(whole) - 1]:
        path = written(tmp_path / "torn", whole[:place])
        with pytest.raises(OnestepError, match="torn") as caught:
            load_pretrained(path)
        assert "\n" not in str(caught.value)


def outcome(path):
    try:
        return f"read as {type(load_pretrained(path)).__name__}"
    except OnestepError as error:
        return str(error)


def test_flipped_bytes_never_do_more_than_change_numbers(tmp_path, canary, model):
    whole, draw = edm_bytes(model), random.Random(1)
    for _ in range(30):
        torn = bytearray(whole)
        torn[draw.randrange(len(torn))] ^= 1 << draw.randrange(8)
        assert "\n" not in outcome(written(tmp_path / "torn", bytes(torn)))
