"""Describe the model and its statistics in Triton's terms, for Triton's clients and load tools.

perf_analyzer needs metadata, configuration and statistics that agree: the same inputs in metadata
and configuration, an integer as version, and equal counts for all computing stages.
"""

from kwise.engine.model.devices import Kind, parse_devices
from kwise.engine.served_model import ServedModel
from kwise.engine.server.grpc.inference.parameters import DEFAULT_PRIORITY, PRIORITIES
from kwise.engine.server.grpc.inference.tensors import INPUTS, MODEL_VERSION, Tensor, outputs_of
from kwise.engine.statistics.group_times import Duration
from kwise.protos.inference import inference_pb2 as pb
from kwise.types import ModelInfo

# The extensions of the protocol that this server has. "statistics" makes perf_analyzer read
# ModelStatistics, and "schedule_policy" stands for the parameters priority and timeout.
EXTENSIONS = ("model_configuration", "schedule_policy", "statistics")
PLATFORM = "kwise_onnx"
BACKEND = "kwise"

_DATA_TYPES = {
    "BYTES": pb.TYPE_STRING,
    "INT64": pb.TYPE_INT64,
    "FP32": pb.TYPE_FP32,
}
_KINDS = {Kind.CPU: pb.ModelInstanceGroup.KIND_CPU, Kind.CUDA: pb.ModelInstanceGroup.KIND_GPU}


def metadata(info: ModelInfo) -> pb.ModelMetadataResponse:
    """Return names, datatypes and shapes of the inputs and outputs."""
    return pb.ModelMetadataResponse(
        name=info.model,
        versions=[MODEL_VERSION],
        platform=PLATFORM,
        inputs=map(_tensor_metadata, INPUTS.values()),
        outputs=map(_tensor_metadata, outputs_of(info.num_members).values()),
    )


def _tensor_metadata(tensor: Tensor) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
    )


def config(info: ModelInfo, model: ServedModel) -> pb.ModelConfig:
    """Return the configuration. Every input is optional, because the prompt has several forms."""
    fields = ("fingerprint", "layout", "precision", "runtime", "max_tokens", "max_responses")
    return pb.ModelConfig(
        name=info.model,
        platform=PLATFORM,
        backend=BACKEND,
        max_batch_size=0,
        input=(
            pb.ModelInput(
                name=t.name, data_type=_DATA_TYPES[t.datatype], dims=t.shape, optional=True
            )
            for t in INPUTS.values()
        ),
        output=(
            pb.ModelOutput(name=t.name, data_type=_DATA_TYPES[t.datatype], dims=t.shape)
            for t in outputs_of(info.num_members).values()
        ),
        instance_group=(
            pb.ModelInstanceGroup(
                name=device.name,
                count=1,
                kind=_KINDS[device.kind],
                gpus=[device.index] if device.kind is Kind.CUDA else [],
            )
            for device in parse_devices(model.config.device)
        ),
        dynamic_batching=pb.ModelDynamicBatching(
            priority_levels=len(PRIORITIES),
            default_priority_level=DEFAULT_PRIORITY,
            default_queue_policy=pb.ModelQueuePolicy(allow_timeout_override=True),
        ),
        parameters={
            name: pb.ModelParameter(string_value=str(getattr(info, name))) for name in fields
        },
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
        response_cache=pb.ModelResponseCache(enable=model.config.cache_bytes > 0),
    )


def statistics(info: ModelInfo, model: ServedModel) -> pb.ModelStatistics:
    """Return the counters of the engine. inference.proto describes each."""
    groups = model.counters.groups
    return pb.ModelStatistics(
        name=info.model,
        version=MODEL_VERSION,
        last_inference=round(groups.last_at_s * 1000),
        inference_count=info.counters.sequences,
        execution_count=info.counters.model_passes,
        inference_stats=pb.InferStatistics(
            success=_duration(groups.success),
            fail=_duration(groups.failure),
            queue=_duration(groups.queue),
            compute_input=_duration(groups.tokenizer),
            compute_infer=_duration(groups.model),
            compute_output=_duration(groups.reply),
            cache_hit=_duration(groups.cache_hit),
            cache_miss=_duration(groups.cache_miss),
        ),
    )


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=round(duration.total_s * 1e9))
