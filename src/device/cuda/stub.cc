// A build without CUDA: no GPU is found, so nothing else is reached.
#include "base/check.h"
#include "device/gpu.h"

namespace tandem::device {
namespace {

[[noreturn]] void missing(const char* what) { check_failed("device/cuda", 0, what); }

}  // namespace

bool built_with_cuda() { return false; }
Result<GpuInfo> find_gpu(int32_t) { return not_found("this build has no CUDA: configure with the preset 'cuda'"); }
void use_gpu(int32_t) { missing("use_gpu"); }

Result<Stream> Stream::create(bool) { return not_found("this build has no CUDA"); }
Stream::Stream(Stream&&) noexcept = default;
Stream& Stream::operator=(Stream&&) noexcept = default;
Stream::~Stream() = default;
void Stream::synchronize() const { missing("synchronize"); }

Result<Event> Event::create() { return not_found("this build has no CUDA"); }
Event::Event(Event&&) noexcept = default;
Event& Event::operator=(Event&&) noexcept = default;
Event::~Event() = default;
void Event::record(const Stream&) { missing("record"); }
bool Event::is_done() const { missing("is_done"); }
void Event::synchronize() const { missing("synchronize"); }
float Event::milliseconds_since(const Event&) const { missing("milliseconds_since"); }

Status share_memory(std::span<const int32_t>) { missing("share_memory"); }
WaitFault* wait_fault() { missing("wait_fault"); }

std::string export_memory(const void*) { missing("export_memory"); }
ImportedMemory::ImportedMemory(ImportedMemory&&) noexcept = default;
ImportedMemory& ImportedMemory::operator=(ImportedMemory&&) noexcept = default;
ImportedMemory::~ImportedMemory() = default;
Result<ImportedMemory> import_memory(const std::string&) { missing("import_memory"); }
void digest_async(const Stream&, std::span<const std::byte>, uint64_t*) { missing("digest_async"); }
void copy_pieces_async(const Stream&, std::span<const CopyPiece>) { missing("copy_pieces_async"); }

Graph::Graph(Graph&&) noexcept = default;
Graph& Graph::operator=(Graph&&) noexcept = default;
Graph::~Graph() = default;
void Graph::begin_recording(const Stream&) { missing("begin_recording"); }
Graph Graph::end_recording(const Stream&) { missing("end_recording"); }
void Graph::launch(const Stream&) const { missing("launch"); }

void copy_async(const Stream&, void*, const void*, size_t) { missing("copy_async"); }
void fill_async(const Stream&, void*, int, size_t) { missing("fill_async"); }
void* gpu_allocate(size_t) { missing("gpu_allocate"); }
int64_t gpu_free_bytes() { missing("gpu_free_bytes"); }
void gpu_free(void*) { missing("gpu_free"); }
void* gpu_allocate_pinned(size_t) { missing("gpu_allocate_pinned"); }
void gpu_free_pinned(void*) { missing("gpu_free_pinned"); }
void gpu_copy(void*, const void*, size_t) { missing("gpu_copy"); }

}  // namespace tandem::device
