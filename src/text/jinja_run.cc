// Runs a template.
#include <fmt/format.h>

#include <vector>

#include "text/jinja_ast.h"
#include "text/jinja_ops.h"

namespace tandem::text::jinja {
namespace {

// Far beyond what a conversation needs; ends a template that multiplies loops or strings.
constexpr int64_t kMaxSteps = 1'000'000;
constexpr size_t kMaxBytes = size_t{256} << 20;

bool is_namespace(const Value& value) {
  return value.get<Object>() && (*value.get<Object>())->contains("__namespace__");
}

class Runner {
 public:
  explicit Runner(Fields variables) { scopes_.push_back(std::move(variables)); }

  Status run(const Block& block) {
    for (const Statement& statement : block.statements) RETURN_IF_ERROR(step(statement));
    return Ok{};
  }
  std::string take() { return std::move(out_); }

 private:
  Status step(const Statement& statement) {
    switch (statement.kind) {
      case Statement::kText: return output(statement.text);
      case Statement::kOutput: {
        ASSIGN_OR_RETURN(Value value, eval(*statement.expr));
        ASSIGN_OR_RETURN(std::string text, to_text(value));
        return output(text);
      }
      case Statement::kSet: return assign(statement);
      case Statement::kIf: return branch(statement);
      case Statement::kFor: return loop(statement);
    }
    return Ok{};
  }

  Status spend(size_t bytes) {
    bytes_ += bytes;
    if (++steps_ > kMaxSteps) return invalid_input(fmt::format("rendering takes more than {} steps", kMaxSteps));
    if (bytes_ > kMaxBytes) return invalid_input(fmt::format("rendering makes more than {} bytes", kMaxBytes));
    return Ok{};
  }
  Status output(std::string_view text) {
    out_ += text;
    return spend(text.size());
  }
  Status assign(const Statement& statement) {
    ASSIGN_OR_RETURN(Value value, eval(*statement.expr));
    // A namespace within a namespace could contain itself.
    if (!statement.field.empty() && is_namespace(value)) return invalid_input("a namespace cannot hold a namespace");
    if (statement.field.empty()) {
      scopes_.back()[statement.name] = std::move(value);
      return Ok{};
    }
    Value target = look_up(statement.name);
    if (!is_namespace(target)) {
      return invalid_input(
          fmt::format("'{}' is not a namespace, its '{}' cannot be set", statement.name, statement.field));
    }
    (**target.get<Object>())[statement.field] = std::move(value);
    return Ok{};
  }
  Status branch(const Statement& statement) {
    for (size_t i = 0; i < statement.blocks.size(); ++i) {
      if (i < statement.conditions.size()) {
        ASSIGN_OR_RETURN(Value value, eval(*statement.conditions[i]));
        if (!truthy(value)) continue;
      }
      return run(statement.blocks[i]);
    }
    return Ok{};
  }
  Status loop(const Statement& statement) {
    ASSIGN_OR_RETURN(Value value, eval(*statement.expr));
    if (value.get<Undefined>()) return Ok{};
    auto* list = value.get<List>();
    if (!list) return invalid_input(fmt::format("'for' cannot go over {}", type_name(value)));
    auto length = static_cast<int64_t>((*list)->size());
    for (int64_t i = 0; i < length; ++i) {
      RETURN_IF_ERROR(spend(0));
      Fields position = {
          {"index0", i}, {"index", i + 1}, {"first", i == 0}, {"last", i + 1 == length}, {"length", length}};
      Fields scope;
      scope["loop"] = Object(std::make_shared<Fields>(std::move(position)));
      scope[statement.name] = (**list)[i];
      scopes_.push_back(std::move(scope));
      Status status = run(statement.blocks[0]);
      scopes_.pop_back();
      RETURN_IF_ERROR(std::move(status));
    }
    return Ok{};
  }

  Value look_up(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      auto found = scope->find(name);
      if (found != scope->end()) return found->second;
    }
    return {};
  }

  // Errors get the line of the innermost expression.
  Result<Value> eval(const Expr& expr) {
    RETURN_IF_ERROR(spend(0));
    Result<Value> result = compute(expr);
    if (!result && !result.error().message.starts_with("line ")) {
      return Error{result.error().code, fmt::format("line {}: {}", expr.line, result.error().message)};
    }
    return result;
  }
  Result<Value> compute(const Expr& expr) {
    switch (expr.kind) {
      case Expr::kLiteral: return expr.value;
      case Expr::kName: return look_up(expr.name);
      case Expr::kAnd:
      case Expr::kOr: {
        ASSIGN_OR_RETURN(Value left, eval(*expr.args[0]));
        if (truthy(left) == (expr.kind == Expr::kOr)) return left;
        return eval(*expr.args[1]);
      }
      case Expr::kChoice: {
        ASSIGN_OR_RETURN(Value condition, eval(*expr.args[1]));
        if (truthy(condition)) return eval(*expr.args[0]);
        if (!expr.args[2]) return Value();
        return eval(*expr.args[2]);
      }
      default: break;
    }
    std::vector<Value> args;
    for (const ExprPtr& arg : expr.args) {
      args.emplace_back();
      if (!arg) continue;
      ASSIGN_OR_RETURN(args.back(), eval(*arg));
    }
    return apply(expr, args);
  }
  Result<Value> apply(const Expr& expr, std::span<const Value> args) {
    switch (expr.kind) {
      case Expr::kList: return list_of(args);
      case Expr::kField: return field_of(args[0], expr.name);
      case Expr::kIndex: return index_of(args[0], args[1]);
      case Expr::kSlice: return bounded(slice_of(args[0], args[1], args[2]));
      case Expr::kCall: return call(expr, args);
      case Expr::kMethod: return bounded(call_method(expr.name, args[0], args.subspan(1)));
      case Expr::kFilter: return bounded(apply_filter(expr.name, args[0], args.subspan(1)));
      case Expr::kTest: return Value(apply_test(expr.name, args[0]));
      case Expr::kNot: return Value(!truthy(args[0]));
      case Expr::kNegate: return binary("-", Value(int64_t{0}), args[0]);
      default: return bounded(binary(expr.name, args[0], args[1]));
    }
  }
  // No lists within lists: their depth would be unbounded, and comparing and freeing them recurses.
  static Result<Value> list_of(std::span<const Value> args) {
    for (const Value& arg : args) {
      if (arg.get<List>() || is_namespace(arg)) return invalid_input(fmt::format("a list of {}", type_name(arg)));
    }
    return Value(List(std::make_shared<const std::vector<Value>>(args.begin(), args.end())));
  }
  // Counts the bytes of a string that an operation has made.
  Result<Value> bounded(Result<Value> made) {
    if (!made) return made;
    auto* text = made->get<Text>();
    auto* list = made->get<List>();
    RETURN_IF_ERROR(spend(text ? (*text)->size() : list ? (*list)->size() * sizeof(Value) : 0));
    return made;
  }
  Result<Value> call(const Expr& expr, std::span<const Value> args) {
    size_t num_plain = args.size() - expr.keywords.size();
    if (expr.name == "raise_exception") {
      auto* text = args.size() == 1 ? args[0].get<Text>() : nullptr;
      return invalid_input(fmt::format("the template refuses: {}", text ? **text : "(no reason)"));
    }
    if (num_plain > 0) return invalid_input("namespace() takes keyword arguments only");
    auto fields = std::make_shared<Fields>();
    (*fields)["__namespace__"] = true;
    for (size_t i = 0; i < args.size(); ++i) (*fields)[expr.keywords[i]] = args[i];
    return Value(Object(std::move(fields)));
  }

  std::vector<Fields> scopes_;
  std::string out_;
  int64_t steps_ = 0;
  size_t bytes_ = 0;
};

}  // namespace

Result<std::string> Program::run(Fields variables) const {
  Runner runner(std::move(variables));
  RETURN_IF_ERROR(runner.run(*body_));
  return runner.take();
}

}  // namespace tandem::text::jinja
