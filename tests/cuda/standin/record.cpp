// The log of the stand-in for CUDA.
#include "record.h"

#include <mutex>
#include <vector>

#include "device.h"

namespace {

std::mutex mutex;
// Never destroyed: ONNX Runtime still calls CUDA while the process ends.
std::vector<StandInEvent>& events = *new std::vector<StandInEvent>;

}  // namespace

extern "C" {

void stand_in_record(const char* kind, const char* name, int64_t size, bool captured) {
    std::lock_guard lock(mutex);
    events.push_back({kind, name, size, current_device(), captured});
}

void stand_in_unexpected(const char* name) { stand_in_record("unexpected", name, 0, false); }

// Forget all events.
void stand_in_clear() {
    std::lock_guard lock(mutex);
    events.clear();
}

// Return the events so far. The pointer is valid until the next call of CUDA.
const StandInEvent* stand_in_events(size_t* count) {
    std::lock_guard lock(mutex);
    *count = events.size();
    return events.data();
}
}
