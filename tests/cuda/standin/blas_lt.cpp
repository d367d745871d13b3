// cuBLASLt of the stand-in: a handle. ONNX Runtime makes one for each thread.
extern "C" {

int cublasLtCreate(void** handle) {
    *handle = new char;
    return 0;
}
int cublasLtDestroy(void* handle) {
    delete static_cast<char*>(handle);
    return 0;
}
}
