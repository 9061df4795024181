// HTTP/1.1 on one connection: heads and bodies in, answers out. Strict where two readers could disagree.
#pragma once

#include "settings.h"

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace openruntimes {

using Bytes = std::vector<std::byte>;

/// A message that cannot be understood: `status` is the answer, after which the connection ends.
struct BadMessage {
    int status;
};

/// The body is beyond the limit; nothing of it is kept.
struct BodyTooLarge {};

/// The other side has gone, or stalls.
struct Closed {};

/// A request's head. Header names are lower-cased; repeats are joined, but of `authorization`, which are all kept.
struct Message {
    std::string method;
    std::string target;
    Headers headers;
    std::vector<std::string> authorizations;
    bool keepsAlive = true;
    std::size_t length = 0;
    bool isChunked = false;
    bool isRead = false;

    std::string_view header(const std::string& name) const;
    bool isInvited() const;
};

/// An answer ready to send.
struct Answer {
    int status = 200;
    std::vector<std::pair<std::string, std::string>> headers;
    Bytes body;
};

/// One accepted socket, which it owns.
class Connection {
public:
    using Handler = std::function<void(Connection&, Message&)>;

    explicit Connection(int socket);
    Connection(const Connection&) = delete;
    ~Connection();
    /// Lets `handle` answer request after request.
    void serve(const Handler& handle);
    /// The whole body; fails with BodyTooLarge as soon as that is known.
    Bytes readBody(Message& message);
    void answer(const Message& message, const Answer& answer);

private:
    int socket_;
    /// What of the input has not been looked at yet.
    std::string buffer_;

    Message readHead();
    void receive();
    Bytes readExactly(std::size_t length);
    void skip(std::size_t length);
    std::string readLine();
    bool discardBody(Message& message);
    Bytes readChunked(Message& message, std::size_t limit);
    void transmit(std::string_view data);
};

std::string toLower(std::string_view text);

/// Whether a text may be a method or a header's name (RFC 9110, 5.6.2).
bool isToken(std::string_view text);

}
