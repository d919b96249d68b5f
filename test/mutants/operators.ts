/** What a mutant changes: small faults of the kind that a person makes, and a test should notice. */
import {
  type BinaryExpression,
  type Node,
  type SourceFile,
  SyntaxKind,
} from "typescript/unstable/ast";
import {
  isAwaitExpression,
  isBinaryExpression,
  isBlock,
  isCallExpression,
  isConditionalExpression,
  isExpressionStatement,
  isFunctionLikeDeclaration,
  isIfStatement,
  isImportDeclaration,
  isInterfaceDeclaration,
  isNumericLiteral,
  isObjectLiteralExpression,
  isPostfixUnaryExpression,
  isPrefixUnaryExpression,
  isPropertyAccessExpression,
  isReturnStatement,
  isStringLiteral,
  isTemplateExpression,
  isThrowStatement,
  isTypeAliasDeclaration,
  isTypeNode,
  isVoidExpression,
  isWhileStatement,
} from "typescript/unstable/ast/is";

/** A change of one place in one file. */
export interface Mutation {
  readonly operator: string;
  /** Of the text that is replaced, in UTF-16 units. */
  readonly start: number;
  readonly end: number;
  readonly replacement: string;
}

const K = SyntaxKind;

/** By the operator that stands there: what to call the change, and what stands there instead. */
const OPERATORS: { readonly [K in SyntaxKind]?: readonly (readonly [string, string])[] } = {
  [K.LessThanToken]: [
    ["boundary", "<="],
    ["comparison", ">="],
  ],
  [K.LessThanEqualsToken]: [
    ["boundary", "<"],
    ["comparison", ">"],
  ],
  [K.GreaterThanToken]: [
    ["boundary", ">="],
    ["comparison", "<="],
  ],
  [K.GreaterThanEqualsToken]: [
    ["boundary", ">"],
    ["comparison", "<"],
  ],
  [K.EqualsEqualsEqualsToken]: [["comparison", "!=="]],
  [K.ExclamationEqualsEqualsToken]: [["comparison", "==="]],
  [K.AmpersandAmpersandToken]: [["logic", "||"]],
  [K.BarBarToken]: [["logic", "&&"]],
  [K.PlusToken]: [["arithmetic", "-"]],
  [K.MinusToken]: [["arithmetic", "+"]],
  [K.AsteriskToken]: [["arithmetic", "/"]],
  [K.SlashToken]: [["arithmetic", "*"]],
  [K.AsteriskAsteriskToken]: [["arithmetic", "*"]],
  [K.PercentToken]: [["arithmetic", "*"]],
  [K.PlusEqualsToken]: [["arithmetic", "-="]],
  [K.MinusEqualsToken]: [["arithmetic", "+="]],
  [K.AmpersandToken]: [["arithmetic", "|"]],
  [K.BarToken]: [["arithmetic", "&"]],
  [K.LessThanLessThanToken]: [["arithmetic", ">>"]],
  [K.GreaterThanGreaterThanToken]: [["arithmetic", "<<"]],
};

/** By the method that is called: what is called instead. */
const METHODS: Readonly<Record<string, string>> = {
  some: "every",
  every: "some",
  min: "max",
  max: "min",
};

/** Every mutation of a file, in the order of its text. Many do not compile: that is for the compiler to say. */
export function mutationsOf(source: SourceFile): readonly Mutation[] {
  const found: Mutation[] = [];
  const textOf = (node: Node) => node.getText(source);
  const add = (operator: string, node: Node, replacement: string) => {
    if (textOf(node) !== replacement) {
      found.push({ operator, start: node.getStart(source), end: node.getEnd(), replacement });
    }
  };
  const isText = (node: Node): boolean =>
    isStringLiteral(node) ||
    isTemplateExpression(node) ||
    (isBinaryExpression(node) && (isText(node.left) || isText(node.right)));

  const binary = (node: BinaryExpression) => {
    const { left, right, operatorToken } = node;
    const isOfTexts = isText(left) || isText(right);
    for (const [operator, replacement] of isOfTexts ? [] : (OPERATORS[operatorToken.kind] ?? [])) {
      add(operator, operatorToken, replacement);
    }
    const isLogic =
      operatorToken.kind === K.AmpersandAmpersandToken || operatorToken.kind === K.BarBarToken;
    if (isLogic || operatorToken.kind === K.QuestionQuestionToken) {
      add("operand removed", node, `(${textOf(left)})`);
      add("operand removed", node, `(${textOf(right)})`);
    }
  };

  const condition = (node: Node) => {
    add("condition negated", node, `!(${textOf(node)})`);
    add("condition always true", node, "true");
    add("condition always false", node, "false");
  };

  const statement = (node: Node) => {
    if (isExpressionStatement(node)) {
      let { expression }: { expression: Node } = node;
      while (isAwaitExpression(expression) || isVoidExpression(expression)) {
        expression = expression.expression;
      }
      const isSuper = isCallExpression(expression) && expression.expression.kind === K.SuperKeyword;
      if (!isSuper) {
        add("statement removed", node, ";");
      }
    } else if (isThrowStatement(node) || node.kind === K.BreakStatement) {
      add("statement removed", node, ";");
    } else if (node.kind === K.ContinueStatement) {
      add("statement removed", node, ";");
    } else if (isReturnStatement(node)) {
      const instead = node.expression === undefined ? [";"] : otherReturns(node, textOf);
      for (const one of instead) {
        add("other return", node, one);
      }
    } else if (isBlock(node) && isFunctionLikeDeclaration(node.parent)) {
      add("body removed", node, "{}");
    }
  };

  const expression = (node: Node) => {
    if (isBinaryExpression(node)) {
      binary(node);
    } else if (isConditionalExpression(node)) {
      const { condition: asked, whenTrue, whenFalse } = node;
      add(
        "branches swapped",
        node,
        `${textOf(asked)} ? ${textOf(whenFalse)} : ${textOf(whenTrue)}`,
      );
      add("branch always taken", node, `(${textOf(whenTrue)})`);
      add("branch never taken", node, `(${textOf(whenFalse)})`);
    } else if (isPrefixUnaryExpression(node)) {
      add("sign removed", node, `(${textOf(node.operand)})`);
    } else if (isPostfixUnaryExpression(node)) {
      const isUp = node.operator === K.PlusPlusToken;
      add("arithmetic", node, `${textOf(node.operand)}${isUp ? "--" : "++"}`);
    } else if (isAwaitExpression(node)) {
      add("await removed", node, `(${textOf(node.expression)})`);
    } else if (isNumericLiteral(node)) {
      add("constant", node, String(Number(node.text) + 1));
      add("constant", node, "0");
    } else if (node.kind === K.TrueKeyword) {
      add("constant", node, "false");
    } else if (node.kind === K.FalseKeyword) {
      add("constant", node, "true");
    } else if (isObjectLiteralExpression(node)) {
      for (const member of node.properties) {
        const all = node.properties.filter((one) => one !== member).map(textOf);
        add("member removed", node, `{ ${all.join(", ")} }`);
      }
    } else if (isCallExpression(node) && isPropertyAccessExpression(node.expression)) {
      const { name, expression } = node.expression;
      const other = METHODS[textOf(name)];
      if (other !== undefined) {
        add("other method", name, other);
      }
      if (["filter", "toSorted", "slice"].includes(textOf(name))) {
        add("call removed", node, textOf(expression));
      }
    }
  };

  const visit = (node: Node) => {
    if (isNotRun(node)) {
      return;
    }
    if (isIfStatement(node) || isWhileStatement(node)) {
      condition(node.expression);
    }
    statement(node);
    expression(node);
    node.forEachChild(visit);
  };
  visit(source);
  return found;
}

/** Types and imports are no code that runs. */
function isNotRun(node: Node): boolean {
  return (
    isTypeNode(node) ||
    isInterfaceDeclaration(node) ||
    isTypeAliasDeclaration(node) ||
    isImportDeclaration(node)
  );
}

/** Another value of the type that the function declares. */
function otherReturns(node: Node, textOf: (node: Node) => string): readonly string[] {
  let at = node.parent;
  while (!isFunctionLikeDeclaration(at) && at.kind !== K.SourceFile) {
    at = at.parent;
  }
  const type = isFunctionLikeDeclaration(at) && at.type ? textOf(at.type) : "";
  if (/^(Promise<)?boolean/.test(type)) {
    return ["return true;", "return false;"];
  }
  if (/^(Promise<)?number/.test(type)) {
    return ["return 0;"];
  }
  if (/^(Promise<)?string/.test(type)) {
    return ['return "";'];
  }
  return /\[\]/.test(type) ? ["return [];"] : ["return undefined;"];
}
