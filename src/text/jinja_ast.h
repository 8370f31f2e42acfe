// The tree of a template. Private to the room: jinja_parse.cc makes it, jinja_run.cc walks it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "text/jinja.h"

namespace tandem::text::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct Expr {
  enum Kind {
    kLiteral,  // value
    kName,     // name
    kList,     // args
    kField,    // args[0] . name
    kIndex,    // args[0] [ args[1] ]
    kSlice,    // args[0] [ args[1] : args[2] ], either bound may be null
    kCall,     // name ( args ): a function, keywords in `keywords`
    kMethod,   // args[0] . name ( args[1...] )
    kFilter,   // args[0] | name ( args[1...] )
    kTest,     // args[0] is name
    kNot,      // args[0]
    kNegate,   // args[0]
    kAnd,
    kOr,
    kBinary,  // args[0] name args[1]: + - ~ * // % == != < <= > >= in
    kChoice,  // args[0] if args[1] else args[2] (may be null)
  };
  Kind kind = kLiteral;
  int line = 0;
  int height = 0;  // of the tree below
  std::string name;
  Value value;
  std::vector<ExprPtr> args;
  std::vector<std::string> keywords;  // names of the last keywords.size() args; kCall only
};

struct Statement {
  enum Kind {
    kText,    // text
    kOutput,  // expr
    kSet,     // name (.field) = expr
    kIf,      // branches: conditions[i] -> blocks[i]; a block more than conditions is the else
    kFor,     // name in expr: blocks[0]
  };
  Kind kind = kText;
  std::string text, name, field;
  ExprPtr expr;
  std::vector<ExprPtr> conditions;
  std::vector<Block> blocks;
};

struct Block {
  std::vector<Statement> statements;
};

}  // namespace tandem::text::jinja
