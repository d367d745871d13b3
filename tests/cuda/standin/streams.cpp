// Streams, events and graphs of the stand-in. A graph replays its copies; its kernels do nothing.
#include <cuda_runtime_api.h>

#include <functional>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "device.h"
#include "record.h"

namespace {

struct Graph {
    std::vector<std::function<void()>> nodes;
};

struct Capture {
    Graph* graph;
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    bool valid;
};

std::mutex mutex;
std::unordered_map<void*, Capture>& captures = *new std::unordered_map<void*, Capture>;
bool captures_fail = false;
void (*during_capture)() = nullptr;

cudaError_t create_stream(cudaStream_t* stream) {
    *stream = reinterpret_cast<cudaStream_t>(new char);
    return cudaSuccess;
}
cudaError_t create_event(cudaEvent_t* event) {
    *event = reinterpret_cast<cudaEvent_t>(new char);
    return cudaSuccess;
}

}  // namespace

bool add_to_graph(void* stream, std::function<void()> work) {
    std::lock_guard lock(mutex);
    auto found = captures.find(stream);
    if (found == captures.end()) return false;
    found->second.graph->nodes.push_back(std::move(work));
    return true;
}

bool is_safe(const char* call) {
    bool safe = true;
    {
        std::lock_guard lock(mutex);
        for (auto& [stream, capture] : captures) {
            bool own = capture.thread == std::this_thread::get_id();
            if (capture.mode == cudaStreamCaptureModeRelaxed) continue;
            if (!own && capture.mode == cudaStreamCaptureModeThreadLocal) continue;
            safe = capture.valid = false;
        }
    }
    if (!safe) stand_in_record("illegal", call, 0, false);
    return safe;
}

extern "C" {

void stand_in_launch(const char* kind, const char* name, void* stream) {
    stand_in_record(kind, name, 0, add_to_graph(stream, [] {}));
}

// Let every capture fail from now on, as if a kernel had made a call that is not allowed in one.
void stand_in_fail_captures(bool fail) {
    std::lock_guard lock(mutex);
    captures_fail = fail;
}

// Call `function` in each capture before it ends; nullptr for nothing.
void stand_in_during_captures(void (*function)()) { during_capture = function; }

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return create_stream(stream); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    return create_stream(stream);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete reinterpret_cast<char*>(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
    if (!is_safe("cudaStreamSynchronize")) return cudaErrorStreamCaptureUnsupported;
    stand_in_record("sync", "cudaStreamSynchronize", 0, false);
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
    if (!is_safe("cudaDeviceSynchronize")) return cudaErrorStreamCaptureUnsupported;
    stand_in_record("sync", "cudaDeviceSynchronize", 0, false);
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* argument) {
    if (!add_to_graph(stream, [=] { function(argument); })) function(argument);
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return create_event(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return create_event(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete reinterpret_cast<char*>(event);
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) {
    if (!is_safe("cudaEventSynchronize")) return cudaErrorStreamCaptureUnsupported;
    stand_in_record("sync", "cudaEventSynchronize", 0, false);
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    std::lock_guard lock(mutex);
    *status = captures.count(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    stand_in_record("capture", "cudaStreamBeginCapture", 0, false);
    std::lock_guard lock(mutex);
    if (captures.count(stream)) return cudaErrorIllegalState;
    captures[stream] = {new Graph, mode, std::this_thread::get_id(), !captures_fail};
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    if (during_capture) during_capture();
    std::lock_guard lock(mutex);
    auto found = captures.find(stream);
    if (found == captures.end()) return cudaErrorIllegalState;
    Capture capture = found->second;
    captures.erase(found);
    if (!capture.valid) {
        delete capture.graph;
        *graph = nullptr;
        return cudaErrorStreamCaptureInvalidated;
    }
    *graph = reinterpret_cast<cudaGraph_t>(capture.graph);
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
    *executable = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph*>(graph)));
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t) {
    auto graph = reinterpret_cast<Graph*>(executable);
    stand_in_record("replay", "cudaGraphLaunch", graph->nodes.size(), false);
    for (auto& node : graph->nodes) node();
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete reinterpret_cast<Graph*>(graph);
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    stand_in_record("capture", "cudaGraphExecDestroy", 0, false);
    delete reinterpret_cast<Graph*>(executable);
    return cudaSuccess;
}
}
