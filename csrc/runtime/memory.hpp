// Large blocks of memory straight from the operating system.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace tracenet {

// Zero-filled memory at the start of a page. Reserved memory takes no room until it is written.
class Block {
  public:
    Block() = default;
    // Throws std::bad_alloc.
    Block(std::size_t bytes, bool reserve_only);
    ~Block();
    Block(Block&& other) noexcept;
    Block& operator=(Block&& other) noexcept;
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    std::uint8_t* data() const { return data_; }
    std::size_t size() const { return bytes_; }
    // Gives the memory's pages back; it stays usable and reads as zeros.
    void release_pages();

  private:
    std::uint8_t* data_ = nullptr;
    std::size_t bytes_ = 0;
};

struct FileBytes {
    std::shared_ptr<const std::uint8_t> data;
    std::size_t size = 0;
};

// A whole file, mapped where the system can, else read. Throws InputError where it cannot be read.
FileBytes map_file(const std::string& path);

}  // namespace tracenet
