// Memory of the stand-in: that of the host. Copies are done and recorded.
#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>

#include "device.h"
#include "record.h"

namespace {

struct Block {
    size_t size;
    int device;
};
std::mutex mutex;
std::map<char*, Block>& blocks = *new std::map<char*, Block>;  // by their first byte

constexpr size_t PAGE = 4096;
size_t whole_pages(size_t size) { return (size + !size + PAGE - 1) / PAGE * PAGE; }

// Return the block that holds the address; nullptr for memory of the host.
const Block* find(const void* address) {
    auto pointer = static_cast<char*>(const_cast<void*>(address));
    std::lock_guard lock(mutex);
    auto after = blocks.upper_bound(pointer);
    if (after == blocks.begin()) return nullptr;
    auto& [first, block] = *std::prev(after);
    return pointer < first + block.size ? &block : nullptr;
}

cudaError_t allocate(void** pointer, size_t size, const char* call) {
    if (!is_safe(call)) return cudaErrorStreamCaptureUnsupported;
    stand_in_record("alloc", call, size, false);
    size = whole_pages(size);
    // Pages of zeros that take no memory until they are written.
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return cudaErrorMemoryAllocation;
    std::lock_guard lock(mutex);
    blocks[static_cast<char*>(memory)] = {size, current_device()};
    *pointer = memory;
    return cudaSuccess;
}

cudaError_t allocate_on_host(void** pointer, size_t size, const char* call) {
    if (!is_safe(call)) return cudaErrorStreamCaptureUnsupported;
    *pointer = std::aligned_alloc(PAGE, whole_pages(size));
    return *pointer ? cudaSuccess : cudaErrorMemoryAllocation;
}

const char* direction(const void* to, const void* from) {
    if (find(to)) return find(from) ? "d2d" : "h2d";
    return find(from) ? "d2h" : "h2h";
}

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** pointer, size_t size) {
    return allocate(pointer, size, "cudaMalloc");
}
cudaError_t cudaMallocFromPoolAsync(void** pointer, size_t size, cudaMemPool_t, cudaStream_t) {
    return allocate(pointer, size, "cudaMallocFromPoolAsync");
}
cudaError_t cudaFree(void* pointer) {
    if (!is_safe("cudaFree")) return cudaErrorStreamCaptureUnsupported;
    std::lock_guard lock(mutex);
    if (auto found = blocks.find(static_cast<char*>(pointer)); found != blocks.end()) {
        munmap(pointer, found->second.size);
        blocks.erase(found);
    }
    return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) { return cudaFree(pointer); }
cudaError_t cudaHostAlloc(void** pointer, size_t size, unsigned) {
    return allocate_on_host(pointer, size, "cudaHostAlloc");
}
cudaError_t cudaMallocHost(void** pointer, size_t size) {
    return allocate_on_host(pointer, size, "cudaMallocHost");
}
cudaError_t cudaFreeHost(void* pointer) {
    std::free(pointer);
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
    *attributes = {};
    const Block* block = find(pointer);
    attributes->type = block ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    attributes->device = block ? block->device : 0;
    attributes->devicePointer = block ? const_cast<void*>(pointer) : nullptr;
    attributes->hostPointer = block ? nullptr : const_cast<void*>(pointer);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
    if (!is_safe("cudaMemcpy")) return cudaErrorStreamCaptureUnsupported;
    stand_in_record(direction(to, from), "cudaMemcpy", size, false);
    std::memmove(to, from, size);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind,
                            cudaStream_t stream) {
    bool captured = add_to_graph(stream, [=] { std::memmove(to, from, size); });
    stand_in_record(direction(to, from), "cudaMemcpyAsync", size, captured);
    if (!captured) std::memmove(to, from, size);
    return cudaSuccess;
}
cudaError_t cudaMemset(void* to, int value, size_t size) {
    if (!is_safe("cudaMemset")) return cudaErrorStreamCaptureUnsupported;
    stand_in_record("memset", "cudaMemset", size, false);
    std::memset(to, value, size);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t stream) {
    bool captured = add_to_graph(stream, [=] { std::memset(to, value, size); });
    stand_in_record("memset", "cudaMemsetAsync", size, captured);
    if (!captured) std::memset(to, value, size);
    return cudaSuccess;
}
}
