# frozen_string_literal: true

# RubyGems takes longer to load than all of the server: it is loaded when the function needs it.

module Runtime
  # Where the build has installed the function's gems, and the file that puts them in the load path.
  BUNDLE = "vendor/bundle"
  SETUP = "#{BUNDLE}/bundler/setup.rb"

  # Lets the function find its gems where they are: nothing is copied, and Bundler is not needed.
  def self.prepare_gems(code_dir)
    if File.file?("#{code_dir}/#{SETUP}")
      require "rubygems"
      Kernel.load("#{code_dir}/#{SETUP}")
    elsif !defined?(Gem)
      Object.autoload(:Gem, "rubygems")
      Kernel.prepend(LazyGems)
    end
  end

  # Looks among the gems for what is not in Ruby's own library.
  module LazyGems
    private

    def require(path)
      super
    rescue LoadError
      raise if $LOADED_FEATURES.any? { |feature| feature.end_with?("/rubygems.rb") }

      super("rubygems")
      Kernel.require(path)
    end
  end
end
