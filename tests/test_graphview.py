"""Graph views against brute force on random graphs, and their growth on large ones."""

from __future__ import annotations

import random
from itertools import pairwise

import networkx as nx
import onnx_ir as ir
import pytest
from opgraft.ir import graphview as gv
from opgraft.ir.errors import InputError
from opgraft.ir.liveness import liveness


def tensor(name, shape):
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def random_graph(seed, n_nodes=12, n_inputs=2):
    """Nodes with one to three inputs and one or two outputs; some values unread, some several outputs."""
    generator = random.Random(seed)
    inputs = [tensor(f"in{i}", [generator.randrange(1, 9)]) for i in range(n_inputs)]
    values = list(inputs)
    nodes = []
    for number in range(n_nodes):
        recent = values[-6:] if generator.random() < 0.8 else values
        read = [generator.choice(recent) for _ in range(generator.randrange(1, 4))]
        made = [
            tensor(f"v{number}_{i}", [generator.randrange(1, 9)]) for i in range(generator.randrange(1, 3))
        ]
        nodes.append(ir.Node("test", "Op", read, outputs=made, name=f"n{number}"))
        values += made
    outputs = generator.sample([v for node in nodes for v in node.outputs], generator.randrange(1, 4))
    return ir.Graph(inputs, outputs, nodes=nodes, name="random", opset_imports={"": 21})


def reachable(successors, starts, without=None):
    seen = set()
    pending = [s for s in starts if s is not without]
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending += [n for n in successors[node] if n is not without]
    return seen


SEEDS = range(60)


@pytest.mark.parametrize("seed", SEEDS)
def test_dominators_by_removal(seed):
    """d dominates n if n cannot be reached from the entry without d."""
    view = gv.node_graph(random_graph(seed))
    for found, starts, successors, root in (
        (gv.immediate_dominators(view), "entry", view.succ, gv.ENTRY),
        (gv.immediate_post_dominators(view), "exit", view.pred, gv.EXIT),
    ):
        first = [node for node in view if view.nodes[node][starts]]
        blocked = {d: set(view) - reachable(successors, first, without=d) - {d} for d in view}
        for node in view:
            dominators = {d for d in view if node in blocked[d]}
            chain = []
            above = found[node]
            while above != root:
                chain.append(above)
                above = found[above]
            assert set(chain) == dominators
            # The immediate one is dominated by all others.
            if chain:
                assert all(chain[0] in blocked[d] for d in chain[1:])


@pytest.mark.parametrize("seed", SEEDS)
def test_convexity_by_all_paths(seed):
    view = gv.node_graph(random_graph(seed))
    generator = random.Random(seed)
    descendants = {node: nx.descendants(view, node) for node in view}
    for size in range(1, 7):
        region = set(generator.sample(list(view), size))
        between = {
            node
            for node in view
            if node not in region
            and any(node in descendants[a] for a in region)
            and any(b in descendants[node] for b in region)
        }
        assert gv.is_convex(view, region) == (not between)
        assert gv.convex_closure(view, region) == region | between
        assert gv.is_convex(view, region | between)
        path = gv.find_bypass(view, region)
        if between:
            assert path[0] in region
            assert path[-1] in region
            assert not region & set(path[1:-1])
            assert len(path) > 2
            assert all(view.has_edge(a, b) for a, b in pairwise(path))


@pytest.mark.parametrize("seed", SEEDS)
def test_cut_values_by_removal(seed):
    """A value is a cut if without it no input reaches an output."""
    graph = random_graph(seed, n_nodes=8)
    successors = {value: [] for value in graph.inputs}
    for node in graph:
        for value in node.inputs:
            successors[value].append(node)
        successors[node] = list(node.outputs)
        successors.update({value: [] for value in node.outputs})
    ends = set(graph.outputs)
    connected = bool(ends & reachable(successors, graph.inputs))
    values = [item for item in successors if isinstance(item, ir.Value)]
    expected = {v for v in values if connected and not ends & reachable(successors, graph.inputs, without=v)}
    found = gv.cut_values(graph)
    assert set(found) == expected
    assert found == sorted(found, key=values.index)


@pytest.mark.parametrize("seed", SEEDS)
def test_liveness_by_definition(seed):
    graph = random_graph(seed)
    nodes = list(graph)
    live = liveness(graph)
    n_bytes = lambda value: 4 * value.shape[0]  # noqa: E731
    totals = []
    for step, node in enumerate(nodes):
        alive = set(graph.inputs) | set(node.outputs)
        made = [v for earlier in nodes[:step] for v in earlier.outputs]
        needed = {v for later in nodes[step:] for v in later.inputs} | set(graph.outputs)
        alive |= {v for v in made if v in needed}
        assert {r.value for r in live.ranges if r.first <= step <= r.last} == alive
        totals.append(sum(map(n_bytes, alive)))
        assert live.live_bytes[step] == totals[-1]
    peak = live.peak()
    assert peak.n_bytes == max(totals)
    assert totals[peak.step] == peak.n_bytes
    assert peak.complete


def test_liveness_with_symbolic_dims_and_unknown_sizes():
    x, y, z = tensor("x", ["n", 4]), tensor("y", ["n", 8]), tensor("z", ["n"])
    lost = ir.Value(name="lost", type=ir.TensorType(ir.DataType.FLOAT))
    nodes = [
        ir.Node("", "A", [x], outputs=[y], name="a"),
        ir.Node("", "B", [y], outputs=[z, lost], name="b"),
    ]
    live = liveness(ir.Graph([x], [z], nodes=nodes, opset_imports={"": 21}))
    assert [str(size) for size in live.live_bytes] == ["48*n", "52*n"]
    peak = live.peak({"n": 10})
    assert (peak.n_bytes, peak.node.name, peak.complete) == (520, "b", False)
    assert "lost" in live.unknown[0][1]


def if_graph():
    """x -> big; If reads `c` and, inside of its branches, captures big and x."""
    x, cond, big, out = tensor("x", [4]), tensor("c", []), tensor("big", [100]), tensor("out", [4])
    branches = []
    for name, extent in (("then", 50), ("else", 500)):
        inner, result = tensor(f"{name}_inner", [extent]), tensor(f"{name}_result", [4])
        body = [
            ir.Node("", "P", [big], outputs=[inner], name=f"{name}_p"),
            ir.Node("", "Q", [inner, x], outputs=[result], name=f"{name}_q"),
        ]
        graph = ir.Graph([], [result], nodes=body, name=name, opset_imports={"": 21})
        branches.append(ir.AttrGraph(f"{name}_branch", graph))
    maker = ir.Node("", "M", [x], outputs=[big], name="make")
    choose = ir.Node("", "If", [cond], branches, outputs=[out], name="if")
    return ir.Graph([x, cond], [out], nodes=[maker, choose], opset_imports={"": 21})


def test_captures_count_as_inputs_of_the_owner():
    graph = if_graph()
    maker, choose = graph
    view = gv.node_graph(graph)
    assert list(view.edges) == [(maker, choose)]
    assert [v.name for v in view.edges[maker, choose]["values"]] == ["big"]
    assert view.nodes[choose]["entry"]
    live = liveness(graph)
    # x, c, big and out are alive in the If; of its branches the larger one counts.
    assert live.live_bytes[1] == 4 * (4 + 1 + 100 + 4)
    assert live.peak().n_bytes == 4 * (4 + 1 + 100 + 4) + 4 * (500 + 4)


def test_constants_are_stored_data():
    x, y, c = tensor("x", [2]), tensor("y", [2]), tensor("c", [2])
    constant = ir.Node(
        "", "Constant", [], [ir.AttrFloat32s("value_floats", [1.0, 2.0])], outputs=[c], name="c"
    )
    add = ir.Node("", "Add", [x, c], outputs=[y], name="add")
    graph = ir.Graph([x], [y], nodes=[constant, add], opset_imports={"": 21})
    assert list(gv.node_graph(graph)) == [add]
    assert list(gv.node_graph(graph, skip_constants=False)) == [constant, add]
    assert [value.name for value in gv.cut_values(graph)] == ["x", "y"]
    assert [r.value.name for r in liveness(graph).ranges] == ["x", "y"]


def test_convex_regions_may_still_form_a_cycle():
    """a1 -> b1 and b2 -> a2: {a1, a2} and {b1, b2} are convex, together they feed each other."""
    x, y = tensor("x", [1]), tensor("y", [1])
    p, q = tensor("p", [1]), tensor("q", [1])
    o1, o2 = tensor("o1", [1]), tensor("o2", [1])
    a1 = ir.Node("", "A", [x], outputs=[p], name="a1")
    b1 = ir.Node("", "B", [p], outputs=[o1], name="b1")
    b2 = ir.Node("", "B", [y], outputs=[q], name="b2")
    a2 = ir.Node("", "A", [q], outputs=[o2], name="a2")
    view = gv.node_graph(ir.Graph([x, y], [o1, o2], nodes=[a1, b1, b2, a2], opset_imports={"": 21}))
    assert gv.is_convex(view, [a1, a2])
    assert gv.is_convex(view, [b1, b2])
    assert not gv.partition_is_acyclic(view, [[a1, a2], [b1, b2]])
    assert gv.partition_is_acyclic(view, [[a1, b1], [b2, a2]])
    assert gv.components(view) == [{a1, b1}, {b2, a2}]
    with pytest.raises(ValueError, match="two regions"):
        gv.partition_is_acyclic(view, [[a1], [a1]])


def test_articulation_nodes_by_removal():
    for seed in range(20):
        view = gv.node_graph(random_graph(seed))
        n_parts = len(gv.components(view))
        expected = []
        for node in gv.topological_order(view):
            rest = view.copy()
            rest.remove_node(node)
            alone = not view.pred[node] and not view.succ[node]
            if not alone and nx.number_weakly_connected_components(rest) > n_parts:
                expected.append(node)
        assert gv.articulation_nodes(view) == expected


def test_cycle_and_bad_order_are_refused():
    x, p, q = tensor("x", [1]), tensor("p", [1]), tensor("q", [1])
    first = ir.Node("", "A", [x, q], outputs=[p], name="first")
    second = ir.Node("", "B", [p], outputs=[q], name="second")
    graph = ir.Graph([x], [q], nodes=[first, second], opset_imports={"": 21})
    with pytest.raises(InputError, match="cycle"):
        gv.node_graph(graph)
    with pytest.raises(InputError, match="before it is made"):
        liveness(graph)


def deep_graph(n_nodes):
    """A chain, then as many nodes that each read from near its end and near its start.

    Walking up from one to the other by single steps would make dominators quadratic.
    """
    x = tensor("x", [2])
    values = [x]
    nodes = []
    for number in range(n_nodes // 2):
        made = tensor(f"v{number}", [2])
        nodes.append(ir.Node("", "N", [values[-1]], outputs=[made], name=f"n{number}"))
        values.append(made)
    for number in range(n_nodes // 2):
        read = [values[-1 - number % 50], values[1 + number % 50]]
        nodes.append(ir.Node("", "S", read, outputs=[tensor(f"s{number}", [2])], name=f"s{number}"))
    last = [node.outputs[0] for node in nodes[-3:]]
    return ir.Graph([x], last, nodes=nodes, opset_imports={"": 21})


def count_steps(action):
    """Lines of our own code executed, a count that no other load on the machine changes."""
    import sys

    files = (gv.__file__, liveness.__code__.co_filename)
    steps = 0

    def trace(frame, event, argument):
        nonlocal steps
        if frame.f_code.co_filename not in files:
            return None
        steps += event == "line"
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(previous)
    return steps


def analyses(graph):
    view = gv.node_graph(graph)
    nodes = gv.topological_order(view)
    return {
        "view": lambda: gv.node_graph(graph),
        "dominators": lambda: gv.immediate_dominators(view),
        "post-dominators": lambda: gv.immediate_post_dominators(view),
        "cuts": lambda: gv.cut_values(graph),
        "convexity": lambda: gv.is_convex(view, nodes[:3] + nodes[-3:]),
        "closure": lambda: gv.convex_closure(view, [nodes[1], nodes[-1]]),
        "liveness": lambda: liveness(graph),
    }


def test_growth_is_near_linear_up_to_20000_nodes():
    small, large = analyses(deep_graph(2_500)), analyses(deep_graph(20_000))
    for name in small:
        ratio = count_steps(large[name]) / count_steps(small[name])
        # Eight times the nodes: 8 when linear, about 8 * (15 / 12) = 10 with a logarithm, 64 when quadratic.
        assert ratio < 11, f"{name}: {ratio:.1f} times the steps for 8 times the nodes"
