// What the parts of the stand-in's runtime share.
#pragma once
#include <functional>

// The number of the device that the calling thread has selected.
int current_device();

// If `stream` is being captured, add `work` to its graph and return true.
bool add_to_graph(void* stream, std::function<void()> work);

// Return whether `call` may be made now. ONNX Runtime captures in mode Global: until the capture
// ends, no thread may make a call that CUDA names unsafe. Such a call fails, and so does the
// capture. (CUDA Runtime API, cudaThreadExchangeStreamCaptureMode.)
bool is_safe(const char* call);
