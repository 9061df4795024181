# frozen_string_literal: true

# Finds and loads the function. A failure is kept and told to every caller: the server stays up.

require_relative "gems"

module Runtime
  NO_MAIN = "Function signature invalid. Did you forget to export a 'main' function?"

  # The callable, or why there is none.
  Function = Struct.new(:main, :failure)

  def self.load(code_dir, entrypoint)
    file = File.join(code_dir, entrypoint)
    return Function.new(nil, "Failed to load entrypoint, file #{entrypoint} does not exist.") unless File.file?(file)

    prepare_gems(code_dir)
    Kernel.load(file)
    top = TOPLEVEL_BINDING.receiver
    top.respond_to?(:main, true) ? Function.new(top.method(:main), nil) : Function.new(nil, NO_MAIN)
  rescue Exception => error # What a file does at load is the function's; the server answers for it.
    Function.new(nil, "#{explain(error, entrypoint)}\n#{describe(error)}")
  end

  def self.explain(error, entrypoint)
    case error
    when SyntaxError then "Syntax error in #{entrypoint}: #{error.message}"
    else "Failed to load file: #{error.message}"
    end
  end
end
