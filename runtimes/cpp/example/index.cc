// Says hello and tells what it was asked: `curl http://localhost:3000/anything?name=you`.

#include "../RuntimeContext.h"

namespace runtime {

class Handler {
public:
    static RuntimeOutput main(RuntimeContext& context) {
        const auto name = context.req.query.get("name", "world").asString();
        context.log("Said hello to " + name + ".");
        Json::Value answer;
        answer["message"] = "Hello, " + name + "!";
        answer["method"] = context.req.method;
        answer["path"] = context.req.path;
        answer["runtime"] = "C++ " + std::to_string(__cplusplus);
        return context.res.json(answer);
    }
};

}
