// Blocks and mapped files; see memory.hpp.
#include "runtime/memory.hpp"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <utility>

#include "tracenet/error.hpp"

#if defined(__unix__) || defined(__APPLE__)
#define TRACENET_HAS_MMAP 1
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#else
#define TRACENET_HAS_MMAP 0
#endif

namespace tracenet {

namespace {

[[noreturn]] void unreadable(const std::string& path, const std::string& why) {
    throw InputError(path + " cannot be read (" + why + "); pass the path of a file");
}

}  // namespace

#if TRACENET_HAS_MMAP

Block::Block(std::size_t bytes, bool reserve_only) {
    if (bytes == 0) return;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#ifdef MAP_NORESERVE
    if (reserve_only) flags |= MAP_NORESERVE;
#endif
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<std::uint8_t*>(memory);
    bytes_ = bytes;
}

Block::~Block() {
    if (data_ != nullptr) munmap(data_, bytes_);
}

void Block::release_pages() {
    if (data_ == nullptr) return;
#ifdef __linux__
    madvise(data_, bytes_, MADV_DONTNEED);
#else
    *this = Block(bytes_, true);
#endif
}

FileBytes map_file(const std::string& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) unreadable(path, std::strerror(errno));
    struct stat status{};
    if (fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
        close(file);
        unreadable(path, "not a regular file");
    }
    const auto size = static_cast<std::size_t>(status.st_size);
    if (size == 0) {
        close(file);
        return {};
    }
    void* memory = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
    const int error = errno;
    close(file);
    if (memory == MAP_FAILED) unreadable(path, std::strerror(error));
    const auto unmap = [size](const std::uint8_t* data) { munmap(const_cast<std::uint8_t*>(data), size); };
    return {std::shared_ptr<const std::uint8_t>(static_cast<const std::uint8_t*>(memory), unmap), size};
}

#else

Block::Block(std::size_t bytes, bool) {
    if (bytes == 0) return;
    // One page more, so that the start can be moved to a multiple of 64 bytes.
    void* memory = std::calloc(bytes + 64 + sizeof(void*), 1);
    if (memory == nullptr) throw std::bad_alloc();
    const auto address = (reinterpret_cast<std::uintptr_t>(memory) + sizeof(void*) + 63) / 64 * 64;
    data_ = reinterpret_cast<std::uint8_t*>(address);
    std::memcpy(data_ - sizeof(void*), &memory, sizeof(void*));
    bytes_ = bytes;
}

Block::~Block() {
    if (data_ == nullptr) return;
    void* memory = nullptr;
    std::memcpy(&memory, data_ - sizeof(void*), sizeof(void*));
    std::free(memory);
}

void Block::release_pages() {
    if (data_ != nullptr) *this = Block(bytes_, true);
}

FileBytes map_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) unreadable(path, "it does not open");
    const auto size = static_cast<std::size_t>(file.tellg());
    auto block = std::make_shared<Block>(size, false);
    file.seekg(0);
    file.read(reinterpret_cast<char*>(block->data()), static_cast<std::streamsize>(size));
    if (!file) unreadable(path, "it ends early");
    return {std::shared_ptr<const std::uint8_t>(block, block->data()), size};
}

#endif

Block::Block(Block&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Block& Block::operator=(Block&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

}  // namespace tracenet
