// The log of the stand-in. Each library writes to it; tests read it.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

// What a call did. `stand_in.py` reads the same layout.
struct StandInEvent {
    const char* kind;   // "kernel", "gemm", "memset", "h2d", "d2h", "d2d", "h2h", "sync", "alloc",
                        // "capture", "replay", "illegal" or "unexpected"
    const char* name;   // the kernel's mangled name, or the function that was called
    int64_t size;       // bytes of a copy or an allocation, nodes of a graph
    int32_t device;     // the calling thread's device
    int32_t captured;   // 1: the work went into a graph instead of being done now
};

// Add an event. The log keeps the pointers, so both strings must live as long as the process.
void stand_in_record(const char* kind, const char* name, int64_t size, bool captured);

// Add the work of a stream: to the graph if the stream is being captured, else to the log.
void stand_in_launch(const char* kind, const char* name, void* stream);

// Add the event of a function that the stand-in has no code for.
void stand_in_unexpected(const char* name);
}
