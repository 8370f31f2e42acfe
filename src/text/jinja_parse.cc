// Tags to a tree, by recursive descent. Precedence as in Jinja2's parser: choice, or, and, not, comparison, + -, ~,
// * // %, unary minus, postfix, filters and tests.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <utility>

#include "text/jinja_ast.h"
#include "text/jinja_lex.h"
#include "text/jinja_ops.h"

namespace tandem::text::jinja {
namespace {

// The parser and the runner recurse.
constexpr int kMaxDepth = 64;    // parentheses and blocks within each other
constexpr int kMaxHeight = 160;  // of an expression's tree, long sums included

using Parsed = Result<ExprPtr>;

class ExprParser {
 public:
  explicit ExprParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Parsed choice() {
    if (++depth_ > kMaxDepth) return fault("an expression is nested too deeply");
    ASSIGN_OR_RETURN(ExprPtr value, either());
    while (take_name("if")) {
      ExprPtr expr = node(Expr::kChoice);
      RETURN_IF_ERROR(push(*expr, std::move(value)));
      RETURN_IF_ERROR(push(*expr, either()));
      if (take_name("else")) {
        RETURN_IF_ERROR(push(*expr, choice()));
      } else {
        RETURN_IF_ERROR(push(*expr, ExprPtr()));
      }
      value = std::move(expr);
    }
    --depth_;
    return value;
  }

  bool take_name(std::string_view name) { return take(Token::kName, name); }
  bool take_operator(std::string_view name) { return take(Token::kOperator, name); }
  Result<std::string> name() {
    if (peek().kind != Token::kName) return fault(fmt::format("a name should stand before '{}'", peek().text));
    return tokens_[at_++].text;
  }
  Status expect(std::string_view name) {
    if (!take_operator(name)) return fault(fmt::format("'{}' should stand before '{}'", name, peek().text));
    return Ok{};
  }
  Status end() const {
    if (peek().kind != Token::kEnd) return fault(fmt::format("'{}' is not understood here", peek().text));
    return Ok{};
  }
  Error fault(std::string_view what) const { return invalid_input(fmt::format("line {}: {}", peek().line, what)); }

 private:
  const Token& peek(size_t ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  bool take(Token::Kind kind, std::string_view text) {
    if (peek().kind != kind || peek().text != text) return false;
    ++at_;
    return true;
  }
  ExprPtr node(Expr::Kind kind, std::string name = {}) const {
    auto expr = std::make_unique<Expr>();
    expr->kind = kind, expr->name = std::move(name), expr->line = peek().line;
    return expr;
  }
  Status push(Expr& expr, Parsed parsed) const {
    if (!parsed) return parsed.error();
    ExprPtr arg = std::move(parsed).value();
    if (arg) expr.height = std::max(expr.height, arg->height + 1);
    if (expr.height > kMaxHeight) return fault("an expression is too long");
    expr.args.push_back(std::move(arg));
    return Ok{};
  }
  // left op right op right..., all operators of one level.
  template <class Next>
  Parsed chain(std::initializer_list<std::string_view> operators, Next next) {
    ASSIGN_OR_RETURN(ExprPtr left, (this->*next)());
    for (;;) {
      auto found = std::find_if(operators.begin(), operators.end(), [&](auto name) { return take_operator(name); });
      if (found == operators.end()) return left;
      ExprPtr expr = node(Expr::kBinary, std::string(*found));
      RETURN_IF_ERROR(push(*expr, std::move(left)));
      RETURN_IF_ERROR(push(*expr, (this->*next)()));
      left = std::move(expr);
    }
  }
  template <class Next>
  Parsed logic(Expr::Kind kind, std::string_view name, Next next) {
    ASSIGN_OR_RETURN(ExprPtr left, (this->*next)());
    while (take_name(name)) {
      ExprPtr expr = node(kind);
      RETURN_IF_ERROR(push(*expr, std::move(left)));
      RETURN_IF_ERROR(push(*expr, (this->*next)()));
      left = std::move(expr);
    }
    return left;
  }

  Parsed either() { return logic(Expr::kOr, "or", &ExprParser::both); }
  Parsed both() { return logic(Expr::kAnd, "and", &ExprParser::negation); }
  Parsed negation() {
    if (!take_name("not")) return comparison();
    if (++depth_ > kMaxDepth) return fault("an expression is nested too deeply");
    ExprPtr expr = node(Expr::kNot);
    RETURN_IF_ERROR(push(*expr, negation()));
    --depth_;
    return expr;
  }
  Parsed comparison() {
    ASSIGN_OR_RETURN(ExprPtr left, sum());
    bool negate = peek().kind == Token::kName && peek().text == "not" && peek(1).text == "in";
    if (negate) ++at_;
    std::string name;
    if (take_name("in")) name = "in";
    for (std::string_view candidate : {"==", "!=", "<=", ">=", "<", ">"}) {
      if (name.empty() && take_operator(candidate)) name = candidate;
    }
    if (name.empty()) return left;
    ExprPtr expr = node(Expr::kBinary, name);
    RETURN_IF_ERROR(push(*expr, std::move(left)));
    RETURN_IF_ERROR(push(*expr, sum()));
    if (!negate) return expr;
    ExprPtr outer = node(Expr::kNot);
    RETURN_IF_ERROR(push(*outer, std::move(expr)));
    return outer;
  }
  Parsed sum() { return chain({"+", "-"}, &ExprParser::join); }
  Parsed join() { return chain({"~"}, &ExprParser::product); }
  Parsed product() { return chain({"*", "//", "%"}, &ExprParser::unary); }
  Parsed unary() {
    if (!take_operator("-")) return postfix();
    if (++depth_ > kMaxDepth) return fault("an expression is nested too deeply");
    ExprPtr expr = node(Expr::kNegate);
    RETURN_IF_ERROR(push(*expr, unary()));
    --depth_;
    return expr;
  }

  Parsed postfix() {
    ASSIGN_OR_RETURN(ExprPtr value, primary());
    for (;;) {
      bool more = true;
      ASSIGN_OR_RETURN(value, suffix(std::move(value), more));
      if (!more) return value;
    }
  }
  Parsed suffix(ExprPtr value, bool& more) {
    if (take_operator(".")) return field(std::move(value));
    if (take_operator("[")) return subscript(std::move(value));
    if (take_operator("|")) return filter(std::move(value));
    if (take_name("is")) return test(std::move(value));
    more = false;
    return value;
  }
  Parsed field(ExprPtr value) {
    ASSIGN_OR_RETURN(std::string field_name, name());
    bool call = take_operator("(");
    if (call && !is_method(field_name)) return fault(fmt::format("method '{}' is not understood", field_name));
    ExprPtr expr = node(call ? Expr::kMethod : Expr::kField, field_name);
    RETURN_IF_ERROR(push(*expr, std::move(value)));
    if (call) RETURN_IF_ERROR(arguments(*expr));
    return expr;
  }
  Parsed subscript(ExprPtr value) {
    ExprPtr expr = node(Expr::kIndex);
    RETURN_IF_ERROR(push(*expr, std::move(value)));
    ExprPtr first, second;
    bool slice = peek().text == ":" && peek().kind == Token::kOperator;
    if (!slice) {
      ASSIGN_OR_RETURN(first, choice());
    }
    if (take_operator(":")) {
      expr->kind = Expr::kSlice;
      if (peek().text != "]") {
        ASSIGN_OR_RETURN(second, choice());
      }
    }
    RETURN_IF_ERROR(expect("]"));
    RETURN_IF_ERROR(push(*expr, std::move(first)));
    if (expr->kind == Expr::kSlice) RETURN_IF_ERROR(push(*expr, std::move(second)));
    return expr;
  }
  Parsed filter(ExprPtr value) {
    ASSIGN_OR_RETURN(std::string filter_name, name());
    if (!is_filter(filter_name)) return fault(fmt::format("filter '{}' is not understood", filter_name));
    ExprPtr expr = node(Expr::kFilter, filter_name);
    RETURN_IF_ERROR(push(*expr, std::move(value)));
    if (take_operator("(")) RETURN_IF_ERROR(arguments(*expr));
    return expr;
  }
  Parsed test(ExprPtr value) {
    bool negate = take_name("not");
    ASSIGN_OR_RETURN(std::string test_name, name());
    if (!is_test(test_name)) return fault(fmt::format("test '{}' is not understood", test_name));
    ExprPtr expr = node(Expr::kTest, test_name);
    RETURN_IF_ERROR(push(*expr, std::move(value)));
    if (!negate) return expr;
    ExprPtr outer = node(Expr::kNot);
    RETURN_IF_ERROR(push(*outer, std::move(expr)));
    return outer;
  }
  // Behind the opening parenthesis. Keywords only for functions.
  Status arguments(Expr& expr) {
    while (!take_operator(")")) {
      if (peek().kind == Token::kName && peek(1).kind == Token::kOperator && peek(1).text == "=") {
        if (expr.kind != Expr::kCall)
          return fault(fmt::format("keyword arguments of '{}' are not understood", expr.name));
        expr.keywords.push_back(peek().text);
        at_ += 2;
      } else if (!expr.keywords.empty()) {
        return fault("an argument stands behind a keyword argument");
      }
      RETURN_IF_ERROR(push(expr, choice()));
      if (peek().text == ")") continue;
      RETURN_IF_ERROR(expect(","));
    }
    return Ok{};
  }

  Parsed primary() {
    Token token = peek();
    if (token.kind == Token::kEnd) return fault("an expression is missing");
    ++at_;
    ExprPtr expr = node(Expr::kLiteral);
    if (token.kind == Token::kString) {
      std::string text = token.text;
      while (peek().kind == Token::kString) text += tokens_[at_++].text;
      expr->value = Value::text(std::move(text));
      return expr;
    }
    if (token.kind == Token::kNumber) {
      int64_t number = 0;
      std::from_chars(token.text.data(), token.text.data() + token.text.size(), number);
      expr->value = number;
      return expr;
    }
    if (token.kind == Token::kName) return named(token.text);
    if (token.text == "(") {
      ASSIGN_OR_RETURN(expr, choice());
      RETURN_IF_ERROR(expect(")"));
      return expr;
    }
    if (token.text == "[") {
      expr->kind = Expr::kList;
      while (!take_operator("]")) {
        RETURN_IF_ERROR(push(*expr, choice()));
        if (peek().text != "]") RETURN_IF_ERROR(expect(","));
      }
      return expr;
    }
    --at_;
    return fault(fmt::format("'{}' is not understood here", token.text));
  }
  Parsed named(const std::string& word) {
    ExprPtr expr = node(Expr::kLiteral);
    if (word == "true" || word == "True") {
      expr->value = true;
    } else if (word == "false" || word == "False") {
      expr->value = false;
    } else if (word == "none" || word == "None") {
      expr->value = None{};
    } else if (take_operator("(")) {
      if (!is_function(word)) return fault(fmt::format("function '{}' is not understood", word));
      expr->kind = Expr::kCall, expr->name = word;
      RETURN_IF_ERROR(arguments(*expr));
    } else {
      expr->kind = Expr::kName, expr->name = word;
    }
    return expr;
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
};

class BlockParser {
 public:
  explicit BlockParser(std::vector<Tag> tags) : tags_(std::move(tags)) {}

  // Until a tag named in `ends`, whose name goes to end_ and whose parser stays in tag_; or the end of the source.
  Result<Block> block(std::initializer_list<std::string_view> ends) {
    if (++depth_ > kMaxDepth) return invalid_input("blocks are nested too deeply");
    Block block;
    while (at_ < tags_.size()) {
      Tag& tag = tags_[at_++];
      if (tag.kind == Tag::kText) {
        block.statements.emplace_back().text = std::move(tag.text);
        continue;
      }
      ASSIGN_OR_RETURN(auto tokens, split_tokens(tag));
      ExprParser parser(std::move(tokens));
      if (tag.kind == Tag::kOutput) {
        Statement& output = block.statements.emplace_back();
        output.kind = Statement::kOutput;
        ASSIGN_OR_RETURN(output.expr, parser.choice());
        RETURN_IF_ERROR(parser.end());
        continue;
      }
      ASSIGN_OR_RETURN(std::string name, parser.name());
      if (std::find(ends.begin(), ends.end(), name) != ends.end()) {
        end_ = name;
        tag_ = std::move(parser);
        --depth_;
        return block;
      }
      ASSIGN_OR_RETURN(Statement statement, this->statement(name, parser));
      block.statements.push_back(std::move(statement));
    }
    if (ends.size() > 0) return invalid_input(fmt::format("'{}' is missing at the end", *(ends.end() - 1)));
    --depth_;
    return block;
  }

 private:
  Result<Statement> statement(const std::string& name, ExprParser& parser) {
    if (name == "set") return assignment(parser);
    if (name == "if") return condition(parser);
    if (name == "for") return loop(parser);
    return parser.fault(fmt::format("tag '{}' is not understood", name));
  }
  Result<Statement> assignment(ExprParser& parser) {
    Statement statement;
    statement.kind = Statement::kSet;
    ASSIGN_OR_RETURN(statement.name, parser.name());
    if (parser.take_operator(".")) {
      ASSIGN_OR_RETURN(statement.field, parser.name());
    }
    RETURN_IF_ERROR(parser.expect("="));
    ASSIGN_OR_RETURN(statement.expr, parser.choice());
    RETURN_IF_ERROR(parser.end());
    return statement;
  }
  Result<Statement> condition(ExprParser& parser) {
    Statement statement;
    statement.kind = Statement::kIf;
    tag_ = std::move(parser);
    for (end_ = "if"; end_ != "endif";) {
      if (end_ != "else") {
        statement.conditions.emplace_back();
        ASSIGN_OR_RETURN(statement.conditions.back(), tag_.choice());
      }
      RETURN_IF_ERROR(tag_.end());
      bool last = end_ == "else";
      auto inner = last ? block({"endif"}) : block({"elif", "else", "endif"});
      if (!inner) return inner.error();
      statement.blocks.push_back(std::move(inner).value());
    }
    RETURN_IF_ERROR(tag_.end());
    return statement;
  }
  Result<Statement> loop(ExprParser& parser) {
    Statement statement;
    statement.kind = Statement::kFor;
    ASSIGN_OR_RETURN(statement.name, parser.name());
    if (!parser.take_name("in")) return parser.fault("'in' is missing after 'for' and one name");
    ASSIGN_OR_RETURN(statement.expr, parser.choice());
    RETURN_IF_ERROR(parser.end());
    ASSIGN_OR_RETURN(Block body, block({"endfor"}));
    statement.blocks.push_back(std::move(body));
    RETURN_IF_ERROR(tag_.end());
    return statement;
  }

  std::vector<Tag> tags_;
  size_t at_ = 0;
  int depth_ = 0;
  std::string end_;
  ExprParser tag_{{}};
};

}  // namespace

Result<Program> Program::compile(std::string_view source) {
  ASSIGN_OR_RETURN(auto tags, split_tags(source));
  ASSIGN_OR_RETURN(Block body, BlockParser(std::move(tags)).block({}));
  Program program;
  program.body_ = std::make_shared<const Block>(std::move(body));
  return program;
}

}  // namespace tandem::text::jinja
