#include "../RuntimeContext.h"

#include <curl/curl.h>

namespace runtime {

class Handler {
    static std::string fetch(const std::string& url) {
        std::string text;
        const auto keep = +[](char* data, std::size_t, std::size_t size, std::string* text) {
            text->append(data, size);
            return size;
        };
        CURL* curl = curl_easy_init();
        curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
        curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, keep);
        curl_easy_setopt(curl, CURLOPT_WRITEDATA, &text);
        const CURLcode result = curl_easy_perform(curl);
        curl_easy_cleanup(curl);
        if (result != CURLE_OK) {
            throw std::runtime_error(curl_easy_strerror(result));
        }
        return text;
    }

public:
    static RuntimeOutput main(RuntimeContext& context) {
        const auto id = context.req.bodyJson.get("id", "1").asString();
        Json::Value todo;
        std::istringstream(fetch(std::string(std::getenv("TODO_URL")) + "/" + id)) >> todo;
        context.log("Sample Log");
        Json::Value answer;
        answer["isTest"] = true;
        answer["message"] = "Hello Open Runtimes 👋";
        answer["url"] = context.req.url;
        answer["variable"] = std::getenv("TEST_VARIABLE");
        answer["todo"] = todo;
        return context.res.json(answer);
    }
};

}
