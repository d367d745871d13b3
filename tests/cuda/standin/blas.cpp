// cuBLAS of the stand-in: matmuls are recorded, and not computed.
//
// The declarations are ours, so that the headers of cuBLAS, which come with 400 MB of kernels, are
// not needed.
#include "record.h"

namespace {

struct Handle {
    void* stream;
};

// The names of cudaDataType_t.
const char* name_of(const char* f32, const char* f16, const char* bf16, int type) {
    return type == 0 ? f32 : type == 2 ? f16 : type == 14 ? bf16 : "gemm of another type";
}

int gemm(Handle* handle, const char* name) {
    stand_in_launch("gemm", name, handle->stream);
    return 0;
}

}  // namespace

extern "C" {

int cublasCreate_v2(Handle** handle) {
    *handle = new Handle{};
    return 0;
}
int cublasDestroy_v2(Handle* handle) {
    delete handle;
    return 0;
}
int cublasSetStream_v2(Handle* handle, void* stream) {
    handle->stream = stream;
    return 0;
}
int cublasSetMathMode(Handle*, int) { return 0; }
int cublasGetMathMode(Handle*, int* mode) { return *mode = 0; }
const char* cublasGetStatusName(int) { return "error of the stand-in for cuBLAS"; }
const char* cublasGetStatusString(int status) { return cublasGetStatusName(status); }

int cublasGemmEx(Handle* handle, int, int, int, int, int, const void*, const void*, int type, ...) {
    return gemm(handle, name_of("GemmEx float", "GemmEx half", "GemmEx bfloat16", type));
}
int cublasGemmStridedBatchedEx(Handle* handle, int, int, int, int, int, const void*, const void*,
                               int type, ...) {
    return gemm(handle, name_of("GemmStridedBatchedEx float", "GemmStridedBatchedEx half",
                                "GemmStridedBatchedEx bfloat16", type));
}
int cublasSgemm_v2(Handle* handle, ...) { return gemm(handle, "Sgemm"); }
int cublasSgemmStridedBatched(Handle* handle, ...) { return gemm(handle, "SgemmStridedBatched"); }
int cublasSgeam(Handle* handle, ...) { return gemm(handle, "Sgeam"); }
}
