"""Rewrite a trie graph so that the keys and values of cached prompts stay on the device.

In the graph for CPUs each layer's cached keys and values are inputs, `past.*`, and those to cache
are outputs, `present.*`: they cross the bus in each pass. The rewritten graph has an input `pool.*`
for each, a table of slots on the device. It reads the cached entries from the slots `past_slots`
and writes the new ones to `slots_to_cache`. The engine binds the output `updated.*` to the same
memory as `pool.*`, so that ScatterND writes in place. A pass writes no slot that it reads.

Where attention reads keys or values in half precision, the pool has that precision, because they
are rounded to it anyway.
"""

import onnx_ir as ir

POOL, UPDATED = "pool.", "updated."
_PAST, _PRESENT = "past.", "present."


def keep_cache_on_device(graph: ir.Graph) -> None:
    """Replace the inputs `past.*` and the outputs `present.*` of a trie graph by pools."""
    past_slots = _index_input("past_slots", ["num_past"])
    slots_to_cache = _index_input("slots_to_cache", ["num_rows_to_cache", 1])
    outputs = {value.name or "": value for value in graph.outputs}
    tape = ir.tape.Tape()
    for past in [value for value in graph.inputs if (value.name or "").startswith(_PAST)]:
        assert past.name is not None and past.shape is not None
        name = past.name.removeprefix(_PAST)
        casts = [node for node in past.consumers() if node.op_type == "Cast"]
        types = {node.attributes["to"].as_int() for node in casts}
        in_half = len(types) == 1 and len(casts) == len(past.consumers())
        dtype = ir.DataType(types.pop()) if in_half else ir.DataType.FLOAT
        shape = ir.Shape(["num_slots", past.shape[1]])
        pool = ir.val(f"{POOL}{name}", dtype, shape)
        cached = tape.op("Gather", [pool, past_slots])
        for replaced in [node.outputs[0] for node in casts] if in_half else [past]:
            replaced.replace_all_uses_with(cached)
        new = _as_type(tape, outputs[f"{_PRESENT}{name}"], dtype)
        updated = tape.op("ScatterND", [pool, slots_to_cache, new])
        updated.name, updated.shape, updated.type = f"{UPDATED}{name}", shape, pool.type
        place = list(graph.outputs).index(outputs[f"{_PRESENT}{name}"])
        graph.outputs[place] = updated
        graph.inputs[list(graph.inputs).index(past)] = pool
    graph.inputs.extend([past_slots, slots_to_cache])
    graph.extend(tape.nodes)
    graph.sort()


def _index_input(name: str, shape: list[str | int]) -> ir.Value:
    return ir.val(name, ir.DataType.INT64, shape)


def _as_type(tape: ir.tape.Tape, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Return the value in the type, without a detour over fp32 if it comes from that type."""
    if dtype is ir.DataType.FLOAT:
        return value
    node = value.producer()
    if node is not None and node.op_type == "Cast":
        source = node.inputs[0]
        if source is not None and source.dtype == dtype:
            return source
    return tape.op("Cast", [value], {"to": dtype})
