// A function that is built with the image, so that the next ones find all else compiled.

namespace runtime {

class Handler {
public:
    static RuntimeOutput main(RuntimeContext& context) { return context.res.empty(); }
};

}
