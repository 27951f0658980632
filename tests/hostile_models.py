"""Hostile and damaged files, made from seeds: each with the exit code and the words that it must be refused with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
OPSET = 17
value_info = helper.make_tensor_value_info
node = helper.make_node


@dataclass(frozen=True)
class Hostile:
    """One file that must be refused."""

    name: str
    make: Callable[[Path], Path]
    """Writes into an empty folder, returns what to give to the command."""
    words: str
    """Part of the one line it must be refused with."""
    code: int = 3


_CASES: list[Hostile] = []


def hostile_files() -> list[Hostile]:
    return list(_CASES)


def model(
    nodes=None, inputs=None, outputs=None, initializers=(), *, opset=OPSET, ir_version=9, functions=(), **graph_fields
):
    """A model of one graph; by default y = Relu(x)."""
    graph = helper.make_graph(
        nodes if nodes is not None else [node("Relu", ["x"], ["y"])],
        "g",
        inputs if inputs is not None else [value_info("x", FLOAT, ["n", 4])],
        outputs if outputs is not None else [value_info("y", FLOAT, None)],
        list(initializers),
        **graph_fields,
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("test", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, functions=functions)


def rich_model(seed: int = 0) -> onnx.ModelProto:
    """A valid model with a bit of everything: weights, a constant, a subgraph, a function, texts, a custom domain."""
    rng = np.random.default_rng(seed)
    body = [node("Mul", ["a", "a"], ["b"]), node("Neg", ["b"], ["r"])]
    square = helper.make_function("test", "NegSquare", ["a"], ["r"], body, [helper.make_opsetid("", OPSET)])
    then_branch = helper.make_graph([node("Add", ["h", "bias"], ["t"])], "then", [], [value_info("t", FLOAT, None)])
    else_branch = helper.make_graph([node("NegSquare", ["h"], ["e"], domain="test")], "else", [],
                                    [value_info("e", FLOAT, None)])  # fmt: skip
    nodes = [
        node("MatMul", ["x", "weight"], ["h"], name="linear", doc_string="a linear layer"),
        node("Constant", [], ["zero"], value=numpy_helper.from_array(np.float32(0))),
        node("ReduceMean", ["h"], ["mean"], axes=[0, 1], keepdims=0),
        node("Greater", ["mean", "zero"], ["is_positive"]),
        node("If", ["is_positive"], ["y"], then_branch=then_branch, else_branch=else_branch),
    ]
    weights = [
        numpy_helper.from_array(rng.standard_normal((4, 4)).astype(np.float32), "weight"),
        TensorProto(name="bias", data_type=FLOAT, dims=[4], float_data=rng.standard_normal(4).tolist()),
    ]
    made = model(nodes, None, [value_info("y", FLOAT, ["n", 4])], weights, functions=[square])
    made.metadata_props.add(key="author", value="nobody")
    return made


def hostile(words: str, *, code: int = 3) -> Callable[[Callable[[Path], object]], None]:
    """Register a maker; it returns the path, bytes for `m.onnx`, or a ModelProto for it."""

    def register(make: Callable[[Path], object]) -> None:
        name = make.__name__

        def write(folder: Path) -> Path:
            made = make(folder)
            return made if isinstance(made, Path) else write_model(folder, made)

        _CASES.append(Hostile(name, write, words, code))

    return register


def write_model(folder: Path, made) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    return path


# Not a model at all


@hostile("empty")
def empty(folder):
    return b""


@hostile("folder")
def a_folder(folder):
    (folder / "sub").mkdir()
    return folder / "sub"


@hostile("no such file")
def missing(folder):
    return folder / "missing.onnx"


@hostile("File name too long")
def endless_name(folder):
    return folder / ("n" * 5000)


@hostile("no regular file")
def a_pipe(folder):
    os.mkfifo(folder / "pipe.onnx")
    return folder / "pipe.onnx"


@hostile("no regular file")
def a_device(folder):
    (folder / "zero.onnx").symlink_to("/dev/zero")
    return folder / "zero.onnx"


@hostile("no such file")
def a_dangling_link(folder):
    (folder / "m.onnx").symlink_to("nothing")
    return folder / "m.onnx"


@hostile("symbolic links")
def a_link_to_itself(folder):
    (folder / "m.onnx").symlink_to("m.onnx")
    return folder / "m.onnx"


@hostile("not a readable ONNX model")
def text(folder):
    return b"This is not a model.\n" * 100


@hostile("web page")
def a_web_page(folder):
    return b"<!DOCTYPE html><html>not found</html>"


@hostile("git lfs pull")
def a_git_lfs_pointer(folder):
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@hostile(".ort")
def a_flatbuffer(folder):
    return b"\x18\0\0\0ORTM" + bytes(100)


@hostile("zip")
def a_zip_archive(folder):
    return b"PK\x03\x04" + bytes(100)


@hostile("not a readable ONNX model")
def random_bytes(folder):
    return b"\x0f" + np.random.default_rng(1).bytes(10_000)


@hostile("not a readable ONNX model")
def zeros(folder):
    return bytes(10_000)


@hostile("not a readable ONNX model")
def endless_varint(folder):
    return b"\x08" + b"\xff" * 10_000


@hostile("not a readable ONNX model")
def length_beyond_the_end(folder):
    return b"\x3a\xff\xff\xff\xff\x0f" + bytes(100)


@hostile("not a readable ONNX model")
def a_tensor(folder):
    return numpy_helper.from_array(np.ones(3, np.float32), "only a tensor")


@hostile("has no graph")
def an_image_file_with_valid_fields(folder):
    return b"\x08\x07\x12\x03abc"


@hostile("entries")
def millions_of_empty_nodes(folder):
    # Two bytes each here, hundreds in a message.
    count = 5_000_000
    graph = b"\x0a\x00" * count
    length = len(graph)
    varint = bytearray()
    while length > 0x7F:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    varint.append(length)
    return b"\x08\x09\x3a" + bytes(varint) + graph


# Headers


@hostile("has no graph")
def no_graph(folder):
    made = model()
    made.ClearField("graph")
    return made


@hostile("no operator set")
def no_opset_import(folder):
    made = model()
    del made.opset_import[:]
    return made


@hostile("is older than")
def opset_zero(folder):
    return model(opset=0)


@hostile("is older than")
def opset_negative(folder):
    return model(opset=-(1 << 62))


@hostile("both imported")
def two_opsets(folder):
    made = model()
    made.opset_import.add(domain="ai.onnx", version=11)
    return made


@hostile("no IR version")
def ir_version_zero(folder):
    return model(ir_version=0)


@hostile("no IR version")
def ir_version_negative(folder):
    return model(ir_version=-5)


@hostile("not imported")
def domain_not_imported(folder):
    return model([node("Foo", ["x"], ["y"], domain="unheard.of")])


# Graph structure


@hostile("cycle")
def cycle(folder):
    return model([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Neg", ["b"], ["y"])])


@hostile("cycle")
def cycle_through_a_subgraph(folder):
    branches = [
        helper.make_graph([node("Neg", ["y"], [name])], name, [], [value_info(name, FLOAT, None)]) for name in "pq"
    ]
    flag = numpy_helper.from_array(np.array(True), "flag")
    return model([node("If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1])], initializers=[flag])


@hostile("'nowhere' is defined nowhere")
def undefined_input(folder):
    return model([node("Add", ["x", "nowhere"], ["y"])])


@hostile("'nowhere' is defined nowhere")
def undefined_input_in_a_subgraph(folder):
    branches = [
        helper.make_graph([node("Neg", ["nowhere"], [name])], name, [], [value_info(name, FLOAT, None)])
        for name in "pq"
    ]
    flag = numpy_helper.from_array(np.array(True), "flag")
    return model([node("If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1])], initializers=[flag])


@hostile("'inner' is defined nowhere")
def a_subgraphs_value_used_outside(folder):
    branches = [
        helper.make_graph([node("Neg", ["x"], ["inner"])], name, [], [value_info("inner", FLOAT, None)])
        for name in "pq"
    ]
    flag = numpy_helper.from_array(np.array(True), "flag")
    nodes = [node("If", ["flag"], ["z"], then_branch=branches[0], else_branch=branches[1]),
             node("Add", ["z", "inner"], ["y"])]  # fmt: skip
    return model(nodes, initializers=[flag])


@hostile("'y' is defined twice")
def duplicate_output(folder):
    return model([node("Relu", ["x"], ["y"]), node("Neg", ["x"], ["y"])])


@hostile("'x' is defined twice")
def output_that_is_an_input(folder):
    return model([node("Relu", ["x"], ["x"])], outputs=[value_info("x", FLOAT, None)])


@hostile("input 'x' is defined twice")
def duplicate_input(folder):
    return model(inputs=[value_info("x", FLOAT, [4]), value_info("x", INT64, [2])])


@hostile("initializer 'w' is defined twice")
def duplicate_initializer(folder):
    return model(initializers=[numpy_helper.from_array(np.ones(n, np.float32), "w") for n in (2, 3)])


@hostile("has no name")
def nameless_initializer(folder):
    return model(initializers=[numpy_helper.from_array(np.ones(2, np.float32), "")])


@hostile("produced by nothing")
def output_of_nothing(folder):
    return model(outputs=[value_info("y", FLOAT, None), value_info("ghost", FLOAT, None)])


@hostile("no operator")
def empty_op_type(folder):
    return model([node("", ["x"], ["y"])])


@hostile("calls itself")
def recursive_functions(folder):
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("test", 1)]
    functions = [
        helper.make_function("test", name, ["a"], ["b"], [node(other, ["a"], ["b"], domain="test")], imports)
        for name, other in (("Ping", "Pong"), ("Pong", "Ping"))
    ]
    return model([node("Ping", ["x"], ["y"], domain="test")], functions=functions)


@hostile("defined twice")
def function_defined_twice(folder):
    imports = [helper.make_opsetid("", OPSET)]
    functions = [
        helper.make_function("test", "F", ["a"], ["b"], [node(op, ["a"], ["b"])], imports) for op in ("Neg", "Relu")
    ]
    return model([node("F", ["x"], ["y"], domain="test")], functions=functions)


@hostile("produced by nothing")
def function_output_of_nothing(folder):
    function = helper.make_function("test", "F", ["a"], ["ghost"], [], [helper.make_opsetid("", OPSET)])
    return model([node("F", ["x"], ["y"], domain="test")], functions=[function])


@hostile("nested too deeply")
def thousand_nested_ifs(folder):
    # Written by hand: the protobuf library would refuse to write it.
    def field(number, payload):
        length, size = bytearray(), len(payload)
        while size > 0x7F:
            length.append(size & 0x7F | 0x80)
            size >>= 7
        length.append(size)
        return bytes([number << 3 | 2]) + bytes(length) + payload

    graph = field(1, node("Relu", ["x"], ["y"]).SerializeToString())
    for _ in range(1000):
        attribute = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"
        graph = field(1, field(4, b"If") + field(5, attribute))
    return b"\x08\x09" + field(7, graph) + field(8, b"\x10\x11")


# Attributes and operands


@hostile("should be INTS")
def attribute_of_wrong_type(folder):
    return model([node("Transpose", ["x"], ["y"], perm=1)])


@hostile("lacks the attribute 'axis'")
def attribute_missing(folder):
    return model([node("Concat", ["x", "x"], ["y"])])


@hostile("does not have")
def attribute_unknown(folder):
    return model([node("Relu", ["x"], ["y"], alpha=1.0)])


@hostile("there twice")
def attribute_twice(folder):
    made = model([node("Transpose", ["x"], ["y"], perm=[1, 0])])
    made.graph.node[0].attribute.append(made.graph.node[0].attribute[0])
    return made


@hostile("no type")
def attribute_without_type(folder):
    made = model([node("Custom", ["x"], ["y"], domain="test", some=1)])
    made.graph.node[0].attribute[0].ClearField("type")
    return made


@hostile("no function")
def attribute_reference_outside_functions(folder):
    made = model([node("LeakyRelu", ["x"], ["y"])])
    made.graph.node[0].attribute.add(name="alpha", ref_attr_name="outer", type=AttributeProto.FLOAT)
    return made


@hostile("has 2 inputs")
def too_many_inputs(folder):
    return model([node("Relu", ["x", "x"], ["y"])])


@hostile("has 0 inputs")
def too_few_inputs(folder):
    return model([node("Relu", [], ["y"])])


# Names


@hostile("no UTF-8")
def operator_name_no_utf8(folder):
    return model([node("Relu", ["x"], ["y"])]).SerializeToString().replace(b"Relu", b"\xff\xfe\xfd\xfc")


@hostile("no UTF-8")
def value_name_no_utf8(folder):
    return model([node("Relu", ["QQQQ"], ["y"])], [value_info("QQQQ", FLOAT, [1])]).SerializeToString().replace(
        b"QQQQ", b"\xff\xfe\xfd\xfc"
    )


@hostile("no UTF-8")
def doc_string_no_utf8(folder):
    made = model([node("Relu", ["x"], ["y"], doc_string="QQQQ")])
    return made.SerializeToString().replace(b"QQQQ", b"\xff\xfe\xfd\xfc")


@hostile("is defined nowhere")
def name_of_ten_megabytes(folder):
    return model([node("Relu", ["n" * 10_000_000], ["y"])])


@hostile("is defined nowhere")
def name_with_line_breaks_and_terminal_codes(folder):
    return model([node("Relu", ["a\nerror: b\r\x1b[31m\x1b]0;title\x07"], ["y"])])


# Tensors


def with_tensor(**fields):
    tensor = TensorProto(name="w", **fields)
    return model([node("Add", ["x", "w"], ["y"])], initializers=[tensor])


@hostile("absurd shape")
def negative_dim_of_a_tensor(folder):
    return with_tensor(data_type=FLOAT, dims=[-4], raw_data=bytes(16))


@hostile("absurd shape")
def overflowing_dims(folder):
    return with_tensor(data_type=FLOAT, dims=[1 << 33, 1 << 33], raw_data=bytes(16))


@hostile("absurd shape")
def overflowing_dims_times_zero(folder):
    return with_tensor(data_type=FLOAT, dims=[0, 1 << 62])


@hostile("absurd shape")
def absurd_constant(folder):
    tensor = TensorProto(name="c", data_type=FLOAT, dims=[1 << 40, 1 << 20], raw_data=bytes(16))
    return model([node("Constant", [], ["c"], value=tensor), node("Add", ["x", "c"], ["y"])])


@hostile("holds 15 bytes")
def raw_data_of_wrong_size(folder):
    return with_tensor(data_type=FLOAT, dims=[4], raw_data=bytes(15))


@hostile("holds 8000 bytes")
def large_raw_data_of_wrong_size(folder):
    return with_tensor(data_type=FLOAT, dims=[4], raw_data=bytes(8000))


@hostile("holds 3 entries")
def float_data_of_wrong_count(folder):
    return with_tensor(data_type=FLOAT, dims=[4], float_data=[1, 2, 3])


@hostile("holds 0 entries")
def data_in_the_wrong_field(folder):
    return with_tensor(data_type=FLOAT, dims=[2], int32_data=[1, 2])


@hostile("holds 5 entries")
def int4_data_of_wrong_count(folder):
    return with_tensor(data_type=TensorProto.INT4, dims=[4], int32_data=[1, 2, 3, 4, 5])


@hostile("holds 0 entries")
def no_data(folder):
    return with_tensor(data_type=FLOAT, dims=[4])


@hostile("holds data twice")
def raw_and_typed_data(folder):
    return with_tensor(data_type=FLOAT, dims=[1], raw_data=bytes(4), float_data=[1])


@hostile("strings as raw data")
def strings_as_raw_data(folder):
    return with_tensor(data_type=TensorProto.STRING, dims=[2], raw_data=b"ab")


@hostile("unknown element type 0")
def element_type_undefined(folder):
    return with_tensor(data_type=0, dims=[1], raw_data=bytes(4))


@hostile("unknown element type 999")
def element_type_unknown(folder):
    return with_tensor(data_type=999, dims=[1], raw_data=bytes(4))


@hostile("unknown element type 999")
def element_type_of_an_input_unknown(folder):
    made = model()
    made.graph.input[0].type.tensor_type.elem_type = 999
    return made


@hostile("indices")
def sparse_indices_outside(folder):
    made = model([node("Add", ["x", "s"], ["y"])])
    sparse = made.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([9])))
    return made


@hostile("cannot be held dense")
def sparse_of_a_terabyte(folder):
    made = model([node("Add", ["x", "s"], ["y"])])
    sparse = made.graph.sparse_initializer.add(dims=[1 << 40])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([9])))
    return made


# External data


def external(folder: Path, *ranges, location="w.bin", n_bytes=64, dims=(4,), data_type=FLOAT):
    """A model whose tensors w0, w1 ... lie at `ranges` (offset, length) of a file of `n_bytes`."""
    if n_bytes is not None:
        (folder / "w.bin").write_bytes(bytes(n_bytes))
    tensors = []
    for i, (offset, length) in enumerate(ranges):
        tensor = TensorProto(name=f"w{i}", data_type=data_type, dims=list(dims), data_location=TensorProto.EXTERNAL)
        for key, entry in (("location", location), ("offset", offset), ("length", length)):
            if entry is not None:
                tensor.external_data.add(key=key, value=str(entry))
        tensors.append(tensor)
    nodes = [node("Sum", ["x", *(t.name for t in tensors)], ["y"])]
    return model(nodes, initializers=tensors)


@hostile("is missing")
def external_file_missing(folder):
    return external(folder, (0, 16), n_bytes=None)


@hostile("beyond the file's 64")
def external_file_short(folder):
    return external(folder, (56, 16))


@hostile("git lfs pull")
def external_file_is_a_git_lfs_pointer(folder):
    made = external(folder, (0, 16000), dims=(4000,))
    (folder / "w.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 16000\n")
    return made


@hostile("'-16'")
def external_offset_negative(folder):
    return external(folder, (-16, 16))


@hostile("'-1'")
def external_length_negative(folder):
    return external(folder, (0, -1))


@hostile("'abc'")
def external_offset_no_number(folder):
    return external(folder, ("abc", 16))


@hostile("not a number of bytes")
def external_offset_of_a_million_digits(folder):
    return external(folder, ("9" * 1_000_000, 16))


@hostile("absurd external offset")
def external_offset_beyond_int64(folder):
    return external(folder, (9_999_999_999_999_999_999, 16))


@hostile("declares 12 external bytes")
def external_length_wrong(folder):
    return external(folder, (0, 12))


@hostile("overlap at byte 8")
def external_ranges_overlap(folder):
    return external(folder, (0, 16), (8, 16))


@hostile("outside the model's folder")
def external_path_absolute(folder):
    return external(folder, (0, 16), location="/dev/zero")


@hostile("outside the model's folder")
def external_path_escapes(folder):
    (folder / "sub").mkdir()
    external(folder)
    made = external(folder, (0, 16), location="../w.bin")
    path = folder / "sub" / "m.onnx"
    path.write_bytes(made.SerializeToString())
    return path


@hostile("outside the model's folder")
def external_link_escapes(folder):
    (folder / "sub").mkdir()
    made = external(folder, (0, 16), location="link.bin")
    (folder / "sub" / "link.bin").symlink_to(folder / "w.bin")
    path = folder / "sub" / "m.onnx"
    path.write_bytes(made.SerializeToString())
    return path


@hostile("outside the model's folder")
def external_link_to_a_device(folder):
    made = external(folder, (0, 16), location="zero.bin")
    (folder / "zero.bin").symlink_to("/dev/zero")
    return made


@hostile("cannot be read")
def external_link_to_itself(folder):
    made = external(folder, (0, 16), location="self.bin")
    (folder / "self.bin").symlink_to("self.bin")
    return made


@hostile("no regular file")
def external_file_is_a_folder(folder):
    (folder / "sub").mkdir()
    return external(folder, (0, 16), location="sub")


@hostile("no regular file")
def external_file_is_a_pipe(folder):
    os.mkfifo(folder / "pipe")
    return external(folder, (0, 16), location="pipe")


@hostile("without a file name")
def external_path_empty(folder):
    return external(folder, (0, 16), location="")


@hostile("without a file name")
def external_path_with_nul(folder):
    return external(folder, (0, 16), location="\0self")


@hostile("File name too long")
def external_path_endless(folder):
    return external(folder, (0, 16), location="n" * 100_000)


@hostile("twice")
def external_entry_twice(folder):
    made = external(folder, (0, 16))
    made.graph.initializer[0].external_data.add(key="offset", value="32")
    return made


@hostile("string tensor")
def external_strings(folder):
    return external(folder, (0, 16), data_type=TensorProto.STRING)


@hostile("said to be external")
def external_and_inline(folder):
    made = external(folder, (0, 16))
    made.graph.initializer[0].raw_data = bytes(16)
    return made


@hostile("is missing")
def external_file_of_a_subgraph_missing(folder):
    tensor = external(folder, (0, 16), n_bytes=None).graph.initializer[0]
    branches = [
        helper.make_graph([node("Add", ["x", "w0"], [name])], name, [], [value_info(name, FLOAT, None)], [tensor])
        for name in "pq"
    ]
    flag = numpy_helper.from_array(np.array(True), "flag")
    return model([node("If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1])], initializers=[flag])


@hostile("outside the model's folder")
def external_path_of_a_constant_escapes(folder):
    tensor = external(folder, (0, 16), location="../../etc/passwd").graph.initializer[0]
    return model([node("Constant", [], ["c"], value=tensor), node("Add", ["x", "c"], ["y"])])


# Torch files


@hostile("unpickles")
def a_torch_checkpoint(folder):
    path = folder / "m.pt"
    path.write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00exit\x85R.")
    return path


@hostile("unpickles")
def a_torch_weights_file(folder):
    path = folder / "m.pth"
    path.write_bytes(b"PK\x03\x04")
    return path


@hostile("unpickles")
def an_exported_program(folder):
    path = folder / "m.pt2"
    path.write_bytes(b"PK\x03\x04")
    return path


# Mutations: refused, or whole


def truncations(seed: int = 0, count: int = 20) -> Iterator[bytes]:
    """Prefixes of a valid model, none of them a valid model: operator sets come last in the file."""
    data = rich_model().SerializeToString()
    for length in np.random.default_rng(seed).choice(np.arange(1, len(data) - 4), count, replace=False):
        yield data[: int(length)]


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """A few bits flipped, bytes replaced, cut out or put in, half of them near the ends, where the structure is."""
    mutated = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, len(mutated)))
        if rng.random() < 0.5:
            near = at % 400
            at = near if rng.random() < 0.5 else len(mutated) - 1 - min(near, len(mutated) - 1)
        kind = rng.random()
        if kind < 0.5:
            mutated[at] ^= 1 << int(rng.integers(0, 8))
        elif kind < 0.7:
            mutated[at] = int(rng.integers(0, 256))
        elif kind < 0.85 and len(mutated) > 10:
            del mutated[at : at + int(rng.integers(1, 6))]
        else:
            mutated[at:at] = rng.bytes(int(rng.integers(1, 6)))
    return bytes(mutated)


def bit_flips(seed: int, count: int) -> Iterator[bytes]:
    data = rich_model().SerializeToString()
    rng = np.random.default_rng(seed)
    for _ in range(count):
        mutated = bytearray(data)
        for position in rng.integers(0, 8 * len(data), rng.integers(1, 4)):
            mutated[position // 8] ^= 1 << (position % 8)
        yield bytes(mutated)
